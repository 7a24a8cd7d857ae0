// After RotaryEmbeddingConfigMixin of Transformers 5.23 (modeling_rope_utils.py): rope_scaling, if it is there and not
// empty, wins over rope_parameters; rope_theta inside the object wins over the one beside it; for yarn
// original_max_position_embeddings beside the object wins over the one inside, and max_position_embeddings is the
// last resort.
#include "engine/model/config_rope.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "base/format.h"
#include "base/log.h"
#include "base/text.h"

namespace cpuinfer::model {
namespace {

constexpr double kMaxTheta = 1e12;
constexpr double kMaxFactor = 1e6;

struct TypeRow {
  std::string_view name;
  RopeType type;
};
constexpr TypeRow kTypes[] = {{"default", RopeType::kDefault},
                              {"linear", RopeType::kLinear},
                              {"dynamic", RopeType::kDynamic},
                              {"yarn", RopeType::kYarn}};

constexpr std::string_view kKnownKeys[] = {
    "rope_type",        "type",     "rope_theta",     "factor",   "original_max_position_embeddings",
    "attention_factor", "mscale",   "mscale_all_dim", "truncate", "partial_rotary_factor",
    "beta_fast",        "beta_slow"};

// The object that holds the parameters, or nullptr for none, and its key.
Result<std::pair<const Json*, const char*>> select_object(const ConfigReader& config) {
  std::pair<const Json*, const char*> selected{nullptr, ""};
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const Json* value = config.find_set(key);
    if (value == nullptr) continue;
    if (!value->is_object()) return config.bad(key, "an object", value);
    if (value->as_object().empty()) continue;
    if (selected.first == nullptr)
      selected = {value, key};
    else if (to_json_text(*selected.first) != to_json_text(*value))
      log_warn("config.json: rope_scaling and rope_parameters differ; rope_scaling is used, as in Transformers");
  }
  return selected;
}

Result<RopeType> parse_type(const ConfigReader& rope) {
  TRY_ASSIGN(const std::optional<std::string> name, rope.optional_string("rope_type"));
  TRY_ASSIGN(const std::optional<std::string> old_name, rope.optional_string("type"));
  const std::string& wanted = name ? *name : old_name ? *old_name : "default";
  for (const TypeRow& row : kTypes)
    if (row.name == wanted) return row.type;
  return rope.unsupported(format("rope_type {} is not supported; cpuinfer computes default, linear, dynamic and yarn",
                                 shown(name ? rope.find("rope_type") : rope.find("type"))));
}

Result<void> check_full_rotation(const ConfigReader& reader) {
  TRY_ASSIGN(const std::optional<double> partial, reader.optional_number("partial_rotary_factor", 0, 1));
  if (partial && *partial != 1)
    return reader.unsupported(format("partial_rotary_factor {} is not supported, only 1", *partial));
  return {};
}

Result<void> check_keys(const Json& object, const ConfigReader& rope, RopeType type) {
  for (const auto& [key, value] : object.as_object()) {
    if (value.is_object()) return rope.unsupported("parameters for each layer type are not supported");
    if (key == "mrope_section") return rope.unsupported("mrope_section (multimodal rope) is not supported");
    // A misspelt parameter would silently give another model.
    if (std::find(std::begin(kKnownKeys), std::end(kKnownKeys), key) == std::end(kKnownKeys))
      log_warn("config.json: rope parameter {} is not known and ignored", to_json_text(Json(key.substr(0, 100))));
    else if (key == "factor" && type == RopeType::kDefault)
      log_warn("config.json: rope parameter factor is ignored, as rope_type is default");
  }
  return {};
}

Result<void> parse_yarn(const ConfigReader& config, const ConfigReader& rope, int64_t max_positions, RopeConfig& out) {
  constexpr const char* kOriginal = "original_max_position_embeddings";
  TRY_ASSIGN(const std::optional<int64_t> outer, config.optional_integer(kOriginal, 1, kMaxPositions));
  TRY_ASSIGN(const std::optional<int64_t> inner, rope.optional_integer(kOriginal, 1, kMaxPositions));
  out.original_max_positions = outer ? *outer : inner ? *inner : max_positions;

  // Transformers wants the key, but takes null for the ratio of the lengths.
  TRY_ASSIGN(const std::optional<double> factor, rope.optional_number("factor", 1, kMaxFactor));
  if (rope.find("factor") == nullptr) return rope.bad("factor", "a number (rope_type yarn needs it)", nullptr);
  out.factor = factor.value_or(static_cast<double>(max_positions) / static_cast<double>(*out.original_max_positions));
  if (out.factor < 1)
    return rope.bad(
        format("factor: max_position_embeddings {} is below original_max_position_embeddings {}, so the "
               "factor would be below 1",
               max_positions, *out.original_max_positions));

  TRY_ASSIGN(out.attention_factor, rope.optional_number("attention_factor", 1e-3, 1e3));
  TRY_ASSIGN(out.mscale, rope.optional_number("mscale", 0, 1e3));
  TRY_ASSIGN(out.mscale_all_dim, rope.optional_number("mscale_all_dim", 0, 1e3));
  // Python's `get(...) or 32`: a zero counts as absent.
  TRY_ASSIGN(const std::optional<double> beta_fast, rope.optional_number("beta_fast", 0, 1e6));
  TRY_ASSIGN(const std::optional<double> beta_slow, rope.optional_number("beta_slow", 0, 1e6));
  if (beta_fast.value_or(0) > 0) out.beta_fast = *beta_fast;
  if (beta_slow.value_or(0) > 0) out.beta_slow = *beta_slow;
  if (out.beta_fast < out.beta_slow)
    return rope.bad(format("beta_fast {} must not be below beta_slow {}", out.beta_fast, out.beta_slow));
  // Absent is true, but null is Python's None, which is false.
  const Json* truncate = rope.find("truncate");
  if (truncate != nullptr && truncate->is_null()) {
    out.truncate = false;
  } else {
    TRY_ASSIGN(out.truncate, rope.boolean("truncate", true));
  }
  return {};
}

}  // namespace

Result<RopeConfig> parse_rope_config(const ConfigReader& config, int head_dim, int64_t max_positions) {
  TRY(check_full_rotation(config));
  RopeConfig out;
  TRY_ASSIGN(const std::optional<double> outer_theta, config.optional_number("rope_theta", 1 + 1e-6, kMaxTheta));
  out.theta = outer_theta.value_or(out.theta);
  TRY_ASSIGN(const auto selected, select_object(config));
  if (selected.first == nullptr) return out;

  const ConfigReader rope(*selected.first, format("config.json: {}", selected.second));
  TRY_ASSIGN(out.type, parse_type(rope));
  TRY(check_keys(*selected.first, rope, out.type));
  TRY(check_full_rotation(rope));
  TRY_ASSIGN(const std::optional<double> theta, rope.optional_number("rope_theta", 1 + 1e-6, kMaxTheta));
  if (theta) out.theta = *theta;
  if (out.type == RopeType::kYarn) {
    TRY(parse_yarn(config, rope, max_positions, out));
  } else if (out.type != RopeType::kDefault) {
    TRY_ASSIGN(const std::optional<double> factor, rope.optional_number("factor", 1, kMaxFactor));
    if (!factor) return rope.bad("factor", "a number (rope_type linear and dynamic need it)", rope.find("factor"));
    out.factor = *factor;
  }
  if (out.type == RopeType::kDynamic && head_dim <= 2)
    return rope.bad(format("rope_type dynamic needs a head_dim above 2, found {}", head_dim));
  return out;
}

}  // namespace cpuinfer::model
