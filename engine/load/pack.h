// Writes a model's weights as a packed file, in little memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>

#include "base/result.h"
#include "engine/load/loader.h"
#include "engine/load/packed_file.h"
#include "engine/model/model.h"
#include "engine/storage/digest.h"
#include "numa/team.h"
#include "numa/topology.h"

namespace cpuinfer::load {

/// Gives weights their values: matrices and vectors have their memory, zero-filled, in the order of packed_layout.h.
using FillWeights = std::function<Result<void>(std::span<const model::WeightSpec> specs)>;

/// What a packed file became.
struct PackStatistics {
  int64_t bytes = 0;  ///< of the file
  storage::Digest128 fingerprint;
  double seconds = 0;
};

/// Parts are filled and hashed in one half of a buffer of this size while those before are written from the other; a
/// part that is larger has a larger buffer for itself.
inline constexpr int64_t kPackBufferBytes = 256_MiB;

/// Writes the file `path`, whose directory exists, and waits until the disk has it; removes it again if that fails.
/// options: progress in bytes of the file; cancel. Takes kPackBufferBytes of memory, or as much as the largest part.
/// REQUIRES: a model of one node whose weights have no memory; team.nodes() is 1. Errors: of `fill`; kRuntime (the name
/// is taken, disk full, I/O), kPermission, kNotFound (no such directory), kInterrupted.
Result<PackStatistics> write_packed(model::Model& model, const FillWeights& fill, const std::filesystem::path& path,
                                    numa::Team& team, const numa::Topology& topology, const LoadOptions& options = {});

}  // namespace cpuinfer::load
