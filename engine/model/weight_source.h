// Weights that are not all in memory: what a forward pass asks for before it uses them.
#pragma once

#include <optional>

#include "base/result.h"
#include "engine/model/workspace.h"
#include "numa/shard.h"
#include "numa/team.h"

namespace cpuinfer::model {

/// Parts of a layer that may be absent; experts come one by one.
enum class LayerPart { kAttention, kMlp };

/// Puts weights into memory when a step needs them: PackedMatrix::place() is called for them. A model without a source
/// has all of its weights in memory. Norms, biases, routers, the embedding and lm_head always are.
///
/// The calls inside a step are made by all workers of the team with the same arguments, and wait for all of them where
/// something is read; between two of them is a meeting of all workers. If one says that the step has failed, it says so
/// to all workers, which then leave the step without another meeting.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  /// Whether experts come by next_experts(); otherwise they are in memory.
  virtual bool streams_experts() const = 0;

  /// Returns when the matrices of a part are in memory, where they stay until the part of the next layer is asked for.
  /// False: the step has failed. Costs nothing for what is always in memory.
  virtual bool await_part(numa::Worker& worker, int layer, LayerPart part) noexcept = 0;

  /// The next experts of a layer to work on: [begin, end) has those of `slots` that are in memory now, and until the
  /// next call, the first of which has `previous` empty at 0. The work on `previous` of this worker is done; that of
  /// the others is waited for. Empty: there are no more. nullopt: the step has failed.
  virtual std::optional<numa::Range> next_experts(numa::Worker& worker, int layer, const ExpertSlots& slots,
                                                  numa::Range previous) noexcept = 0;

  /// Before a step of `rows` rows, and after all workers have left it, by the calling thread. end_step returns why the
  /// step failed, if it did; the next step is as good as any.
  virtual void begin_step(int rows) = 0;
  virtual Result<void> end_step() = 0;
};

}  // namespace cpuinfer::model
