#include "engine/load/packed_layout.h"

#include "base/format.h"
#include "base/types.h"

namespace cpuinfer::load {
namespace {

std::string part_name(const model::WeightSpec& spec) {
  if (spec.vector != nullptr || spec.layer < 0) return spec.purpose;
  return spec.expert < 0 ? format("layer {} {}", spec.layer, spec.purpose)
                         : format("layer {} expert {}", spec.layer, spec.expert);
}

}  // namespace

PackedLayout lay_out_packed(model::Model& model) {
  PackedLayout layout;
  const auto add = [&](const model::WeightSpec& spec) {
    std::string name = part_name(spec);
    if (layout.parts.empty() || layout.parts.back().name != name) {
      layout.bytes = round_up(layout.bytes, kPackedAlignment);
      const bool vector = spec.vector != nullptr;
      layout.parts.push_back({.name = std::move(name),
                              .purpose = spec.purpose,
                              .layer = vector ? -1 : spec.layer,
                              .expert = vector ? -1 : spec.expert,
                              .offset = layout.bytes,
                              .first_weight = layout.weights.size(),
                              .digest = {}});
    }
    const int64_t bytes = spec.matrix != nullptr ? spec.matrix->bytes() : spec.vector->bytes();
    layout.weights.push_back({spec, layout.bytes, bytes});
    layout.bytes += bytes;
    layout.parts.back().bytes = layout.bytes - layout.parts.back().offset;
    ++layout.parts.back().weight_count;
  };
  // Vectors are small and there are many: one part of them.
  model.visit_weights([&](const model::WeightSpec& spec) {
    if (spec.vector != nullptr) add(spec);
  });
  model.visit_weights([&](const model::WeightSpec& spec) {
    if (spec.matrix != nullptr) add(spec);
  });
  layout.bytes = round_up(layout.bytes, kPackedAlignment);
  return layout;
}

}  // namespace cpuinfer::load
