// generation_config.json: how the model's makers want it to be sampled.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "base/types.h"

namespace cpuinfer::model {

/// What the file says of the keys that cpuinfer uses; the others are not even looked at. Absent keys (or null) stay
/// empty and the caller's defaults apply.
struct GenerationDefaults {
  std::optional<bool> do_sample;            ///< false: greedy
  std::optional<float> temperature;         ///< [0, 100]
  std::optional<int> top_k;                 ///< >= 0; 0 = off
  std::optional<float> top_p;               ///< (0, 1]
  std::optional<float> min_p;               ///< [0, 1]
  std::optional<float> repetition_penalty;  ///< [0.001, 1000]; 1 = off
  std::optional<int64_t> max_new_tokens;    ///< > 0
  std::vector<TokenId> eos_token_ids;       ///< one or many in the file; empty when absent
};

/// Errors: kBadInput names the key, its value and the range.
Result<GenerationDefaults> parse_generation_config(const Json& config);

}  // namespace cpuinfer::model
