// A model: its numbers, its weights, its forward pass. And the list of architectures.
#pragma once

#include <memory>

#include "base/json.h"
#include "base/result.h"
#include "engine/model/batch.h"
#include "engine/model/config.h"
#include "engine/model/kv_cache.h"
#include "engine/model/ops.h"
#include "engine/model/placement.h"
#include "engine/model/weight_source.h"
#include "engine/model/weights.h"
#include "engine/model/workspace.h"
#include "kernels/registry.h"
#include "numa/team.h"

namespace cpuinfer::model {

/// Version of everything that decides bits: orders of accumulation, leaf and superblock sizes, segments, exp2,
/// roundings. Raised whenever the same request would give other bits than before (docs/numerics.md).
inline constexpr int kNumericsVersion = 1;

/// What a forward pass runs on.
struct Runtime {
  numa::Team& team;
  const kernels::Kernels& kernels;
};

/// Owned by the engine; created without weight memory, filled by load::load_weights, immutable afterwards. forward() is
/// for one thread at a time.
class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;

  /// Experts per token from the next step on, for measurements; config() says the new number afterwards.
  /// REQUIRES: a model with experts, 1 <= experts <= the number that the workspace was made for.
  virtual void set_experts_per_token(int experts) = 0;

  /// Calls visitor(spec) for every weight, in the order of use: the one list that planner, checker, loader and
  /// `synth` share.
  virtual void visit_weights(const WeightVisitor& visitor) = 0;

  /// Where weights come from that are not in memory; nullptr: all are. Views it. Whole experts are not streamed.
  virtual void set_weight_source(WeightSource* source) = 0;

  /// One step: appends keys and values of all rows to the cache and computes workspace.logits[i] [vocab] float32 for
  /// batch.logit_rows[i].
  /// REQUIRES: weights loaded, or to be had from the source; the batch fits workspace.limits; token ids below vocab;
  /// pages cover all positions. Errors: of what is read from disk during the step (nothing is, if all is in memory).
  /// All workers have left the step then, the logits are worthless, and so is what the cache has of the batch's
  /// positions; the next step is as good as any.
  virtual Result<void> forward(const Runtime& runtime, const Batch& batch, KvCache& kv, Workspace& workspace) = 0;
};

/// One row per model family.
struct Architecture {
  const char* hf_name;  ///< "Qwen3MoeForCausalLM": architectures[0] of config.json
  std::unique_ptr<Model> (*create)(const ModelConfig& config, const Placement& placement);
};
std::span<const Architecture> architectures();

/// The model of config.architecture. kUnsupported with the list of names if there is none.
Result<std::unique_ptr<Model>> create_model(const ModelConfig& config, const Placement& placement);

}  // namespace cpuinfer::model
