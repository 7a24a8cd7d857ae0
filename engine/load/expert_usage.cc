#include "engine/load/expert_usage.h"

#include <cmath>
#include <string>

#include "base/format.h"
#include "base/json.h"
#include "base/types.h"
#include "engine/checkpoint/checkpoint_file.h"

namespace cpuinfer::load {
namespace {

constexpr int64_t kMaxFileBytes = 64_MiB;

}  // namespace

Result<std::vector<std::vector<double>>> read_expert_usage(const std::filesystem::path& path,
                                                           const model::ModelConfig& config) {
  TRY_ASSIGN(const std::string text, checkpoint::read_whole_file(path, kMaxFileBytes));
  TRY_ASSIGN(const Json json, parse_json(text, path.string()));
  const auto bad = [&](const std::string& what) { return fail(ErrorCode::kBadInput, path.string() + ": " + what); };
  const Json* layers = json.find("layers");
  if (layers == nullptr || !layers->is_array())
    return bad(format("expected {{\"layers\": [[a count for each expert], ...]}}, found {}",
                      layers == nullptr ? "no \"layers\"" : format("\"layers\" that is {}", layers->kind_name())));
  if (static_cast<int>(layers->as_array().size()) != config.layers)
    return bad(format("\"layers\" has {} lists and the model {} layers; it was made with another model",
                      layers->as_array().size(), config.layers));
  std::vector<std::vector<double>> usage(config.layers);
  for (int l = 0; l < config.layers; ++l) {
    const Json& list = layers->as_array()[l];
    if (!list.is_array()) return bad(format("layer {}: expected a list of counts, found {}", l, list.kind_name()));
    const size_t experts = config.moe_layers[l] ? config.experts : 0;
    if (list.as_array().size() != experts)
      return bad(format("layer {} has {} counts and the model {} experts there; it was made with another model", l,
                        list.as_array().size(), experts));
    for (const Json& count : list.as_array()) {
      if (!count.is_number() || !std::isfinite(count.as_double()) || count.as_double() < 0)
        return bad(format("layer {}, expert {}: the count is {}; it must be a number, 0 or more", l, usage[l].size(),
                          to_json_text(count)));
      usage[l].push_back(count.as_double());
    }
  }
  return usage;
}

Result<void> write_expert_usage(const std::filesystem::path& path, std::span<const std::vector<double>> usage) {
  Json layers{Json::Array{}};
  for (const std::vector<double>& counts : usage) {
    Json list{Json::Array{}};
    for (const double count : counts) {
      // Whole numbers as such: 7, not 7.0.
      const bool whole = count == std::floor(count) && std::fabs(count) < 0x1p53;
      list.push_back(whole ? Json(static_cast<int64_t>(count)) : Json(count));
    }
    layers.push_back(std::move(list));
  }
  Json json;
  json.set("layers", std::move(layers));
  return checkpoint::write_whole_file(path, to_json_text(json) + "\n");
}

}  // namespace cpuinfer::load
