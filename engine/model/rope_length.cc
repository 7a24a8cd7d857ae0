#include "engine/model/rope_length.h"

#include <algorithm>

#include "base/format.h"

namespace cpuinfer::model {

int64_t original_positions(const ModelConfig& config) {
  const int64_t stated = config.rope.original_max_positions.value_or(config.max_positions);
  // Qwen3's first checkpoints say 40,960 = 32,768 + 8,192 for the answer; their cards scale from 32,768.
  return stated == 40960 ? 32768 : stated;
}

RopeByLength rope_by_length(const ModelConfig& config) {
  RopeByLength lengths = {.native_positions = config.max_positions, .original_positions = original_positions(config)};
  // Some who add YaRN to a config.json raise max_position_embeddings to what it reaches, others leave it as it was.
  if (config.rope.type == RopeType::kYarn &&
      static_cast<double>(config.max_positions) >= config.rope.factor * static_cast<double>(lengths.original_positions))
    lengths.native_positions = lengths.original_positions;
  return lengths;
}

int64_t position_limit(const ModelConfig& config) {
  if (config.rope_by_length) {
    const RopeByLength& lengths = *config.rope_by_length;
    return std::min(std::max(lengths.native_positions, kYarnFactors.back() * lengths.original_positions),
                    kMaxPositions);
  }
  if (config.rope.type == RopeType::kDefault) return config.max_positions;
  const int64_t original = config.rope.original_max_positions.value_or(config.max_positions);
  const double scaled =
      std::min(config.rope.factor * static_cast<double>(original), static_cast<double>(kMaxPositions));
  return std::max(config.max_positions, static_cast<int64_t>(scaled));
}

RopeConfig sequence_rope(const ModelConfig& config, int64_t planned_tokens) {
  if (!config.rope_by_length || planned_tokens <= config.rope_by_length->native_positions) return config.rope;
  RopeConfig rope;
  rope.type = RopeType::kYarn;
  rope.theta = config.rope.theta;
  rope.original_max_positions = config.rope_by_length->original_positions;
  for (const int factor : kYarnFactors) {
    rope.factor = factor;
    if (factor * config.rope_by_length->original_positions >= planned_tokens) break;
  }
  return rope;
}

std::string describe_rope(const ModelConfig& config) {
  if (!config.rope_by_length) return describe(config.rope);
  std::string text = format("auto, for each sequence: no scaling up to {} tokens, yarn factor",
                            config.rope_by_length->native_positions);
  for (const int factor : kYarnFactors)
    text += format("{} {} up to {}", factor == kYarnFactors.front() ? "" : ",", factor,
                   factor * config.rope_by_length->original_positions);
  return text + format("; theta {}", config.rope.theta);
}

std::string scaling_advice(const ModelConfig& config, int64_t context_tokens) {
  const int64_t original = original_positions(config);
  for (const int factor : kYarnFactors) {
    if (factor * original < context_tokens) continue;
    return format(
        "--rope-scaling auto would choose YaRN for sequences that need it, at some cost in quality: for {} tokens that "
        "is yarn:{}:{}, which reaches {}",
        context_tokens, factor, original, factor * original);
  }
  return format("no rope scaling that is known to work reaches that far (YaRN {} gives {} tokens)", kYarnFactors.back(),
                kYarnFactors.back() * original);
}

}  // namespace cpuinfer::model
