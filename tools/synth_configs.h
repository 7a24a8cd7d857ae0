// The sizes of published models, for checkpoints with random weights.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace cpuinfer::tools {

/// config.json of a published model ("qwen3-30b-a3b"), or of "tiny". kUsage with the names for any other.
Result<Json> named_config(std::string_view name);

std::vector<std::string> config_names();

}  // namespace cpuinfer::tools
