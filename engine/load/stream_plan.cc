#include "engine/load/stream_plan.h"

#include <algorithm>

namespace cpuinfer::load {

bool is_streamed(const model::ModelConfig& config, const StreamPlan& plan, const model::WeightSpec& spec) {
  if (spec.matrix == nullptr || spec.layer < 0) return false;
  if (spec.expert >= 0) return plan.expert_slots > 0;
  if (spec.purpose == "attention") return is_spread(spec.layer, config.layers, plan.attention_layers);
  if (spec.purpose != "mlp") return false;
  const auto begin = config.moe_layers.begin();
  const int dense = static_cast<int>(std::count(begin, config.moe_layers.end(), false));
  return is_spread(static_cast<int>(std::count(begin, begin + spec.layer, false)), dense, plan.mlp_layers);
}

StreamedParts streamed_parts(const PackedLayout& layout) {
  StreamedParts parts;
  const int nodes = layout.weights.back().spec.matrix->nodes();
  const auto make = [&](PartReads& reads, const PackedPart& part) {
    if (reads.extents.empty()) reads = make_part_reads(layout.weights_of(part), part.offset, nodes);
  };
  for (const PackedPart& part : layout.parts) {
    if (part.expert >= 0)
      make(parts.expert, part);
    else if (part.purpose == "attention")
      make(parts.attention, part);
    else if (part.purpose == "mlp")
      make(parts.mlp, part);
  }
  return parts;
}

}  // namespace cpuinfer::load
