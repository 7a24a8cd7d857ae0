// From checked tensors in files to packed weights on their nodes.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <vector>

#include "base/result.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/tensor_reader.h"
#include "engine/model/model.h"
#include "numa/memory.h"
#include "numa/team.h"
#include "numa/topology.h"

namespace cpuinfer::load {

/// Checks that the checkpoint has every tensor of the model with its shape; reads no weights. Tensors that the model
/// does not use are one warning. Errors: kBadInput that names the tensor, expected against found.
Result<void> check_tensors(model::Model& model, const checkpoint::Checkpoint& checkpoint);

/// The memory of a model's weights, one buffer per node. Must outlive the model's last forward().
using WeightMemory = std::vector<numa::NodeBuffer>;

/// What a load was like.
struct LoadStatistics {
  int64_t bytes = 0;         ///< read of the files
  int64_t direct_bytes = 0;  ///< of these straight from the disk, not through the page cache
  int64_t buffer_bytes = 0;  ///< of all workers: what was taken beside the weights
  int workers = 0;           ///< that loaded: kLeastLoaders or more
  double seconds = 0;
  double read_seconds = 0, pack_seconds = 0;  ///< of all workers together
};

struct LoadOptions {
  /// Called by one thread now and then with bytes read and bytes in all.
  std::function<void(int64_t done_bytes, int64_t total_bytes)> progress = {};
  /// The same while an engine takes the pages of KV cache and workspace, after the weights.
  std::function<void(int64_t done_bytes, int64_t total_bytes)> page_progress = {};
  /// When it becomes true, loading stops with kInterrupted. May be nullptr.
  const std::atomic<bool>* cancel = nullptr;
  /// Where to say what the load was like. May be nullptr.
  LoadStatistics* statistics = nullptr;
  /// What the page cache keeps. Absent: all of a checkpoint that is small beside the free memory, for the next start;
  /// nothing new of a larger one.
  std::optional<checkpoint::PageCache> page_cache = std::nullopt;
};

/// A block is this long in the files, or shorter so that the blocks of all workers stay below kBlocksBytes: the buffer
/// that reading takes beside the weights, but for some pages per block. (At least the 16 rows of a unit, so that very
/// many workers or very long rows can take more.)
inline constexpr int64_t kBlockBytes = 2_MiB;
inline constexpr int64_t kBlocksBytes = 128_MiB;
/// Workers that load, at the least, all nodes together. A worker reads a block and then packs it: a disk that is to be
/// busy has several requests at any time, however few cores compute later. Beyond the CPUs they wait for the disk.
inline constexpr int kLeastLoaders = 8;

/// Address space for the stacks of the threads that load beside a team of so many workers.
int64_t loader_stack_bytes(int workers);

/// Allocates the weights of a model on its nodes, zero-filled, and places all matrices and vectors there, or those that
/// are `wanted`, each at a multiple of a page: for read_weights, read_packed and weights that are made in memory.
/// Errors: kDoesNotFit.
Result<WeightMemory> allocate_weights(model::Model& model, int nodes, const numa::Topology& topology,
                                      const std::function<bool(const model::WeightSpec&)>& wanted = {});

/// Fills weights that have their memory: the workers of a node read that node's units in blocks of megabytes, in the
/// order of the files, and pack them straight into its memory; a worker packs while others read. F16 and F32 tensors
/// are rounded to bf16 with one warning. A team of fewer than kLeastLoaders workers is replaced by a larger one while
/// it loads. Takes a block per worker beside the weights (kBlockBytes, kBlocksBytes): 16 MiB for up to eight. REQUIRES:
/// check_tensors and allocate_weights succeeded; team.nodes() is the model's number of nodes. Errors: kDoesNotFit (a
/// buffer), kRuntime (I/O, with file and offset), kInterrupted.
Result<void> read_weights(model::Model& model, const checkpoint::Checkpoint& checkpoint, numa::Team& team,
                          const numa::Topology& topology, const LoadOptions& options = {});

/// allocate_weights, then read_weights. REQUIRES: the checkpoint is not packed.
Result<WeightMemory> load_weights(model::Model& model, const checkpoint::Checkpoint& checkpoint, numa::Team& team,
                                  const numa::Topology& topology, const LoadOptions& options = {});

}  // namespace cpuinfer::load
