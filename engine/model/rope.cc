// Frequencies after Transformers 5.23: modeling_rope_utils.py (_compute_linear_scaling_rope_parameters,
// _compute_dynamic_ntk_parameters, _compute_yarn_parameters) and compute_default_rope_parameters of
// models/qwen3_moe/modeling_qwen3_moe.py. At position 10^5 one unit in the last place of a frequency turns the angle by
// 0.008, so each step is rounded to float where torch rounds it; what Python computes in double stays double.
// tests/engine/model/rope_test.cc holds the tables to Transformers' own.
#include "engine/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"
#include "base/format.h"

namespace cpuinfer::model {
namespace {

// torch's vectorized powf errs by less than 1 unit in the last place; the double power rounds correctly.
float float_power(float base, double exponent) {
  return static_cast<float>(std::pow(static_cast<double>(base), exponent));
}

// base ** (arange(0, dim, 2) / dim)
std::vector<float> wavelengths(float base, int dim) {
  std::vector<float> powers(static_cast<size_t>(dim / 2));
  for (int i = 0; i < dim / 2; ++i)
    powers[static_cast<size_t>(i)] = float_power(base, static_cast<float>(2 * i) / static_cast<float>(dim));
  return powers;
}

// NTK-aware base. Up to max_positions Transformers has Python numbers here (double), beyond it torch scalars (float;
// the exponent stays double). 20,000 random lengths and parameters gave torch's base exactly.
float dynamic_base(const RopeConfig& config, int dim, int64_t max_positions, int64_t sequence_length) {
  const double exponent = static_cast<double>(dim) / (dim - 2);
  if (sequence_length <= max_positions) {
    const double positions = static_cast<double>(max_positions);
    const double stretch = config.factor * positions / positions - (config.factor - 1);
    return static_cast<float>(config.theta * std::pow(stretch, exponent));
  }
  const float reached = static_cast<float>(config.factor) * static_cast<float>(sequence_length);
  const float stretch = reached / static_cast<float>(max_positions) - static_cast<float>(config.factor - 1);
  return static_cast<float>(config.theta) * float_power(stretch, exponent);
}

// The pairs between which YaRN goes over from extrapolation to interpolation: those that turn beta_fast and beta_slow
// times within the original length.
std::pair<double, double> yarn_ramp(const RopeConfig& config, int dim, int64_t original_max_positions) {
  const auto pair_of = [&](double rotations) {
    const double length = static_cast<double>(original_max_positions);
    return dim * std::log(length / (rotations * 2 * std::numbers::pi)) / (2 * std::log(config.theta));
  };
  double low = pair_of(config.beta_fast), high = pair_of(config.beta_slow);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;  // as Transformers avoids the division by zero
  return {low, high};
}

std::vector<float> yarn_frequencies(const RopeConfig& config, int dim, int64_t max_positions) {
  const auto [low, high] = yarn_ramp(config, dim, config.original_max_positions.value_or(max_positions));
  const float start = static_cast<float>(low), width = static_cast<float>(high - low);
  std::vector<float> frequencies = wavelengths(static_cast<float>(config.theta), dim);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float extrapolated = 1.0f / frequencies[i];
    const float interpolated = 1.0f / (static_cast<float>(config.factor) * frequencies[i]);
    const float ramp = std::clamp((static_cast<float>(i) - start) / width, 0.0f, 1.0f);
    const float keep = 1.0f - ramp;
    frequencies[i] = interpolated * (1.0f - keep) + extrapolated * keep;
  }
  return frequencies;
}

const char* type_name(RopeType type) {
  switch (type) {
    case RopeType::kDefault: return "default";
    case RopeType::kLinear: return "linear";
    case RopeType::kDynamic: return "dynamic";
    case RopeType::kYarn: return "yarn";
  }
  return "?";
}

}  // namespace

double rope_attention_factor(const RopeConfig& config) {
  if (config.type != RopeType::kYarn) return 1;
  if (config.attention_factor) return *config.attention_factor;
  const auto scale = [&](double mscale) {
    return config.factor <= 1 ? 1.0 : 0.1 * mscale * std::log(config.factor) + 1.0;
  };
  // Python's truth: a zero counts as absent.
  const double mscale = config.mscale.value_or(0), mscale_all_dim = config.mscale_all_dim.value_or(0);
  return mscale != 0 && mscale_all_dim != 0 ? scale(mscale) / scale(mscale_all_dim) : scale(1);
}

RopeFrequencies rope_frequencies(const RopeConfig& config, int head_dim, int64_t max_positions,
                                 int64_t sequence_length) {
  ENSURE(head_dim >= 2 && head_dim % 2 == 0, "head_dim is positive and even");
  ENSURE(config.type != RopeType::kDynamic || head_dim > 2, "dynamic rope has a head_dim above 2");
  ENSURE(max_positions > 0 && sequence_length >= 0, "positions are not negative");
  RopeFrequencies result;
  result.attention_scaling = static_cast<float>(rope_attention_factor(config));
  if (config.type == RopeType::kYarn) {
    result.inv_freq = yarn_frequencies(config, head_dim, max_positions);
    return result;
  }
  const float base = config.type == RopeType::kDynamic ? dynamic_base(config, head_dim, max_positions, sequence_length)
                                                       : static_cast<float>(config.theta);
  result.inv_freq = wavelengths(base, head_dim);
  for (float& value : result.inv_freq) {
    value = 1.0f / value;
    if (config.type == RopeType::kLinear) value /= static_cast<float>(config.factor);
  }
  return result;
}

void rope_rows(const RopeFrequencies& frequencies, std::span<const int64_t> positions, float* cos, float* sin) {
  for (const int64_t position : positions) {
    for (const float frequency : frequencies.inv_freq) {
      const float angle = static_cast<float>(position) * frequency;
      *cos++ = static_cast<float>(std::cos(static_cast<double>(angle))) * frequencies.attention_scaling;
      *sin++ = static_cast<float>(std::sin(static_cast<double>(angle))) * frequencies.attention_scaling;
    }
  }
}

std::string describe(const RopeConfig& config) {
  std::string text = type_name(config.type);
  if (config.type != RopeType::kDefault) text += format(", factor {}", config.factor);
  text += format(", theta {}", config.theta);
  if (config.type != RopeType::kYarn) return text;
  if (config.original_max_positions) text += format(", original {}", *config.original_max_positions);
  text += format(", attention factor {:.5g}", rope_attention_factor(config));
  if (config.beta_fast != 32 || config.beta_slow != 1)
    text += format(", beta {} to {}", config.beta_fast, config.beta_slow);
  if (!config.truncate) text += ", not truncated";
  return text;
}

}  // namespace cpuinfer::model
