#include "engine/model/generation_config.h"

#include "base/format.h"
#include "base/text.h"
#include "engine/model/config_reader.h"

namespace cpuinfer::model {
namespace {

Result<std::optional<float>> parse_float(const ConfigReader& config, const char* key, double low, double high) {
  TRY_ASSIGN(const std::optional<double> value, config.optional_number(key, low, high));
  if (!value) return std::nullopt;
  return static_cast<float>(*value);
}

Result<std::vector<TokenId>> parse_eos(const ConfigReader& config) {
  constexpr const char* kKey = "eos_token_id";
  const Json* value = config.find_set(kKey);
  if (value == nullptr) return {};
  if (!value->is_array()) {
    TRY_ASSIGN(const int64_t id, config.integer(kKey, 0, 0, INT32_MAX));
    return std::vector<TokenId>{static_cast<TokenId>(id)};
  }
  std::vector<TokenId> ids;
  for (const Json& id : value->as_array()) {
    if (!id.is_int() || id.as_int() < 0 || id.as_int() > INT32_MAX)
      return config.bad(kKey, format("integers from 0 to {}", INT32_MAX), &id);
    ids.push_back(static_cast<TokenId>(id.as_int()));
  }
  return ids;
}

}  // namespace

Result<GenerationDefaults> parse_generation_config(const Json& json) {
  const ConfigReader config(json, "generation_config.json");
  if (!json.is_object()) return config.bad(format("expected an object, found {}", shown(&json)));
  GenerationDefaults out;
  TRY_ASSIGN(out.do_sample, config.optional_boolean("do_sample"));
  TRY_ASSIGN(out.temperature, parse_float(config, "temperature", 0, 100));
  TRY_ASSIGN(const std::optional<int64_t> top_k, config.optional_integer("top_k", 0, INT32_MAX));
  if (top_k) out.top_k = static_cast<int>(*top_k);
  TRY_ASSIGN(out.top_p, parse_float(config, "top_p", 0, 1));
  // The sampler refuses 0 too, but would blame the command line. Compared as float: 1e-60 has become 0.
  if (out.top_p == 0.0f) return config.bad("top_p", "a number over 0 and at most 1", config.find("top_p"));
  TRY_ASSIGN(out.min_p, parse_float(config, "min_p", 0, 1));
  TRY_ASSIGN(out.repetition_penalty, parse_float(config, "repetition_penalty", 0.001, 1000));
  TRY_ASSIGN(out.max_new_tokens, config.optional_integer("max_new_tokens", 1, INT64_MAX));
  TRY_ASSIGN(out.eos_token_ids, parse_eos(config));
  return out;
}

}  // namespace cpuinfer::model
