#include "engine/load/expert_usage.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <string>
#include <string_view>
#include <system_error>

#include "base/format.h"
#include "base/json.h"
#include "base/types.h"
#include "engine/checkpoint/checkpoint_file.h"

namespace cpuinfer::load {
namespace {

constexpr int64_t kMaxFileBytes = 64_MiB;

std::unexpected<Error> system_failure(const std::filesystem::path& path, const char* action, int error) {
  const ErrorCode code = error == EACCES || error == EPERM || error == EROFS ? ErrorCode::kPermission
                         : error == ENOENT || error == ENOTDIR               ? ErrorCode::kNotFound
                                                                             : ErrorCode::kRuntime;
  return fail(code, format("{}: {}: {}", path.string(), action, std::generic_category().message(error)));
}

// All of `text`, to a descriptor; 0 or the error's number.
int write_all(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const ssize_t done = ::write(descriptor, text.data(), text.size());
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return errno;
    text.remove_prefix(static_cast<size_t>(done));
  }
  return 0;
}

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

  std::filesystem::path temporary = path;
  temporary.replace_filename(format(".{}.tmp-{}", path.filename().string(), ::getpid()));
  const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) return system_failure(path, "cannot create a temporary file beside it", errno);
  const char* action = "cannot write";
  int error = write_all(descriptor, to_json_text(json) + "\n");
  if (::close(descriptor) != 0 && error == 0) error = errno;
  if (error == 0 && ::rename(temporary.c_str(), path.c_str()) != 0) {
    action = "cannot rename into place";
    error = errno;
  }
  if (error == 0) return {};
  ::unlink(temporary.c_str());
  return system_failure(path, action, error);
}

}  // namespace cpuinfer::load
