// Reads weights of a checkpoint and packs them to their places: all at once, or some after others.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/tensor_reader.h"
#include "engine/load/blocks.h"
#include "engine/load/loader.h"
#include "engine/load/loading.h"
#include "engine/model/model.h"
#include "numa/memory.h"
#include "numa/team.h"
#include "numa/topology.h"

namespace cpuinfer::load {

/// What read_weights does, for any part of the weights. Views checkpoint, team, topology and options.
class CheckpointWeights {
 public:
  /// Warns, once for all of the model's, of tensors that are rounded to bf16. REQUIRES: check_tensors succeeded.
  CheckpointWeights(model::Model& model, const checkpoint::Checkpoint& checkpoint, numa::Team& team,
                    const numa::Topology& topology, const LoadOptions& options);

  /// Fills matrices and vectors that have their memory. REQUIRES: of the model. Errors: of read_weights.
  Result<void> read(std::span<const model::WeightSpec> specs);

  /// Of all reads so far; LoadStatistics::seconds is of their time alone.
  LoadStatistics statistics() const;

 private:
  // What one worker has done. In cache lines of its own.
  struct alignas(128) WorkerShare {
    std::vector<const std::byte*> extents;  // where those of its block begin
    double read_seconds = 0, pack_seconds = 0;
  };
  Result<void> read_matrices(std::span<const MatrixSource> matrices);
  Result<void> load_block(const BlockList& list, const Block& block, int node, std::byte* buffer, WorkerShare& share);
  static void pack_unit(const BlockList& list, const Block& block, const WorkerShare& share, int node, int64_t unit);
  Result<void> append_row(const checkpoint::TensorRef& tensor, int64_t first, int count, std::vector<float>& values);
  Result<void> load_vector(const model::WeightSpec& spec);
  numa::Team& loaders() { return more_ ? *more_ : team_; }

  const checkpoint::Checkpoint& checkpoint_;
  numa::Team& team_;
  const numa::Topology& topology_;
  std::unique_ptr<numa::Team> more_;  // instead of a small team
  checkpoint::TensorReader reader_;
  Loading loading_;
  std::vector<WorkerShare> shares_;        // [loaders]
  std::vector<numa::NodeBuffer> buffers_;  // [nodes] a block for each worker of the node
  double seconds_ = 0;
};

}  // namespace cpuinfer::load
