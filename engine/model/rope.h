// Rotary position embedding: frequencies and cos/sin rows as Transformers computes them (modeling_rope_utils.py).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace cpuinfer::model {

/// The longest context that anything may ask for; keeps products of sizes far from overflow.
inline constexpr int64_t kMaxPositions = int64_t{1} << 28;

enum class RopeType { kDefault, kLinear, kDynamic, kYarn };

/// The rope parameters of a config, validated by parse_model_config: theta > 1, factor >= 1, all finite.
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000;
  double factor = 1;                              ///< linear, dynamic, yarn
  std::optional<double> attention_factor;         ///< yarn; when absent computed from factor, mscale, mscale_all_dim
  double beta_fast = 32, beta_slow = 1;           ///< yarn: rotations over the original length that bound the ramp
  std::optional<double> mscale, mscale_all_dim;   ///< yarn
  bool truncate = true;                           ///< yarn: whole-numbered ramp bounds
  std::optional<int64_t> original_max_positions;  ///< yarn; max_positions when absent
};

/// YaRN that is chosen for each sequence by the length that it is planned for (rope_length.h).
struct RopeByLength {
  int64_t native_positions = 0;    ///< up to these no scaling
  int64_t original_positions = 0;  ///< which kYarnFactors multiply
};

/// The factors that the makers of Qwen3 speak of.
inline constexpr std::array<int, 3> kYarnFactors = {2, 4, 8};

/// What a sequence needs to rotate its queries and keys.
struct RopeFrequencies {
  std::vector<float> inv_freq;  ///< [head_dim / 2] radians per position
  float attention_scaling = 1;  ///< multiplies cos and sin
};

/// Frequencies in float32 arithmetic, step by step as Transformers does with torch, but with powers rounded
/// correctly: 99% of frequencies are torch's, the others differ by 1 or 2 units in the last place (rope_test).
/// `dynamic` depends on sequence_length: the caller fixes it once per sequence, as keys already in the cache are not
/// rotated again. The other types ignore it.
/// REQUIRES: a validated config; head_dim even (and > 2 for dynamic); max_positions > 0; sequence_length >= 0.
RopeFrequencies rope_frequencies(const RopeConfig& config, int head_dim, int64_t max_positions,
                                 int64_t sequence_length);

/// cos, sin: [positions, head_dim / 2] float32, row-major. The angle is float(position) * inv_freq rounded to float,
/// as in torch; cos and sin of that angle are computed in double, rounded, and scaled in float.
void rope_rows(const RopeFrequencies& frequencies, std::span<const int64_t> positions, float* cos, float* sin);

/// The factor that multiplies cos and sin; 1 for all types but yarn.
double rope_attention_factor(const RopeConfig& config);

/// One line for people: "yarn, factor 4, theta 1000000, original 32768, attention factor 1.1386".
std::string describe(const RopeConfig& config);

}  // namespace cpuinfer::model
