// From checked tensors in files to packed weights on their nodes.
#pragma once

#include <atomic>
#include <functional>
#include <vector>

#include "base/result.h"
#include "engine/checkpoint/checkpoint.h"
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

struct LoadOptions {
  /// Called by one thread now and then with bytes read and bytes in all.
  std::function<void(int64_t done_bytes, int64_t total_bytes)> progress;
  /// When it becomes true, loading stops with kInterrupted. May be nullptr.
  const std::atomic<bool>* cancel = nullptr;
};

/// Allocates and fills all weights: the workers of a node read the rows of that node's units and pack them straight
/// into its memory. F16 and F32 tensors are rounded to bf16 with one warning. Peak memory is the packed weights plus a
/// buffer of 16 rows per worker. REQUIRES: check_tensors succeeded; team.nodes() is the model's number of nodes.
/// Errors: kDoesNotFit, kRuntime (I/O, with file and offset), kInterrupted.
Result<WeightMemory> load_weights(model::Model& model, const checkpoint::Checkpoint& checkpoint, numa::Team& team,
                                  const numa::Topology& topology, const LoadOptions& options = {});

}  // namespace cpuinfer::load
