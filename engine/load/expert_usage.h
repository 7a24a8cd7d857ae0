// How often each expert was chosen, in a file: what whole experts are balanced by.
//
//   {"layers": [[12, 0, 7, ...], ...]}
//
// One list per layer with a count for each expert; an empty list for a layer without experts.
#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "base/result.h"
#include "engine/model/config.h"

namespace cpuinfer::load {

/// [layers][experts]. Errors: kNotFound (missing, unreadable), kBadInput (not such a file, or one of another model).
Result<std::vector<std::vector<double>>> read_expert_usage(const std::filesystem::path& path,
                                                           const model::ModelConfig& config);

/// The file appears when it is complete (temporary file, rename), and replaces one of that name. Errors: kNotFound (no
/// such directory), kPermission, kRuntime.
Result<void> write_expert_usage(const std::filesystem::path& path, std::span<const std::vector<double>> usage);

}  // namespace cpuinfer::load
