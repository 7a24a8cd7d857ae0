// config.json and generation_config.json from hostile text, up to the rope tables that follow from them.
#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/json.h"
#include "base/log.h"
#include "engine/model/config.h"
#include "engine/model/generation_config.h"
#include "engine/model/rope.h"

namespace {

using cpuinfer::model::ModelConfig;

void check_rope(const ModelConfig& config) {
  ENSURE(!describe(config.rope).empty(), "rope parameters can be described");
  for (const int64_t length : {int64_t{0}, config.max_positions, config.max_positions + 1, config.max_positions * 4}) {
    const auto frequencies = rope_frequencies(config.rope, config.head_dim, config.max_positions, length);
    ENSURE(frequencies.inv_freq.size() == static_cast<size_t>(config.head_dim / 2), "one frequency per pair");
    ENSURE(std::isfinite(frequencies.attention_scaling) && frequencies.attention_scaling > 0, "scaling is positive");
    for (const float frequency : frequencies.inv_freq)
      ENSURE(frequency >= 0 && frequency <= 1.001f, "frequencies lie between 0 and 1");
    const int64_t positions[] = {0, length};
    std::vector<float> cos(frequencies.inv_freq.size() * 2), sin(cos.size());
    rope_rows(frequencies, positions, cos.data(), sin.data());
    for (const float value : cos) ENSURE(std::isfinite(value), "rows are finite");
  }
}

void check_sizes(const ModelConfig& config) {
  ENSURE(config.layers > 0 && config.hidden > 0 && config.vocab > 0 && config.max_positions > 0, "sizes are positive");
  ENSURE(config.heads % config.kv_heads == 0 && config.head_dim % 2 == 0, "heads come in groups, dimensions in pairs");
  ENSURE(config.moe_layers.size() == static_cast<size_t>(config.layers), "every layer has its kind");
  ENSURE(config.experts_per_token <= config.experts, "no more experts than there are");
  ENSURE((config.experts == 0) == (config.moe_intermediate == 0), "experts have a width");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const bool quiet = [] {
    cpuinfer::set_log_sink([](cpuinfer::LogLevel, std::string_view) {});
    return true;
  }();
  (void)quiet;
  const auto json = cpuinfer::parse_json({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!json) return 0;
  if (const auto config = cpuinfer::model::parse_model_config(*json)) {
    check_sizes(*config);
    check_rope(*config);
  }
  if (const auto defaults = cpuinfer::model::parse_generation_config(*json))
    ENSURE(!defaults->top_p || (*defaults->top_p >= 0 && *defaults->top_p <= 1), "probabilities lie between 0 and 1");
  return 0;
}
