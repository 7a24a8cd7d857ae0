// Which weights stay in memory and which are read while a step runs (--weights stream).
#pragma once

#include <cstdint>

#include "engine/load/part_reads.h"
#include "engine/model/model.h"

namespace cpuinfer::load {

/// Norms, biases, routers, the embedding and lm_head stay in memory; of the rest what fits. Pure data, chosen by
/// plan_model.
struct StreamPlan {
  int attention_layers = 0;  ///< whose attention is read in every step, spread evenly over the layers; 0: none
  int mlp_layers = 0;        ///< the same of dense MLPs
  int expert_slots = 0;      ///< for experts; 0: all of them are in memory for good
  int spare_slots = 0;       ///< of these: see ExpertCache

  bool streams() const { return attention_layers > 0 || mlp_layers > 0 || expert_slots > 0; }
};

/// What is read in every step goes through so many slots, so that a part is read while another is worked on.
inline constexpr int kRingSlots = 2;

/// Whether the weights of a matrix are read while a step runs. Vectors never are.
bool is_streamed(const model::ModelConfig& config, const StreamPlan& plan, const model::WeightSpec& spec);

/// How each kind of part is read. Empty extents: the model has no such part.
struct StreamedParts {
  PartReads attention, mlp, expert;
};
StreamedParts streamed_parts(const PackedLayout& layout);

/// Whether number `i` of `count` is among `chosen` that are spread evenly.
constexpr bool is_spread(int i, int count, int chosen) {
  return int64_t{i + 1} * chosen / count > int64_t{i} * chosen / count;
}

}  // namespace cpuinfer::load
