// The rope part of config.json.
#pragma once

#include <cstdint>

#include "base/json.h"
#include "base/result.h"
#include "engine/model/config_reader.h"
#include "engine/model/rope.h"

namespace cpuinfer::model {

/// Reads rope_scaling / rope_parameters / rope_theta as Transformers does. `config` reads the whole config.json.
/// For yarn the result always has original_max_positions.
Result<RopeConfig> parse_rope_config(const ConfigReader& config, int head_dim, int64_t max_positions);

}  // namespace cpuinfer::model
