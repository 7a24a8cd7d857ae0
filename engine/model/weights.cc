#include "engine/model/weights.h"

#include "base/check.h"

namespace cpuinfer::model {

PackedMatrix::PackedMatrix(int outputs, int terms, int segment_terms, const UnitSplit& split)
    : outputs_(outputs),
      terms_(terms),
      units_(ceil_div(outputs, kernels::kUnitOutputs)),
      segments_(segment_terms > 0 ? ceil_div(terms, segment_terms) : 1),
      full_segment_(segment_terms > 0 ? std::min(segment_terms, terms) : terms),
      segment_stride_(round_up(full_segment_, kernels::kTileTerms)),
      split_(split),
      shards_(split.nodes()) {
  for (int node = 0; node < nodes(); ++node) shards_[node].units = split.units(units_, node);
}

int PackedMatrix::segment_terms(int segment) const {
  return segment + 1 < segments_ ? full_segment_ : terms_ - segment * full_segment_;
}

int64_t PackedMatrix::shard_bytes(int node) const {
  return shards_[node].units.count() * segments_ * unit_elements() * static_cast<int64_t>(sizeof(bf16));
}

int PackedMatrix::node_of(int64_t unit) const {
  for (int node = 0; node < nodes(); ++node)
    if (unit >= shards_[node].units.begin && unit < shards_[node].units.end) return node;
  ENSURE(false, "unit numbers are below units()");
}

void PackedMatrix::read_output(int output, bf16* out) const {
  const int unit_number = output / kernels::kUnitOutputs;
  const int node = node_of(unit_number);
  for (int segment = 0; segment < segments_; ++segment) {
    kernels::unpack_output(unit(node, segment, unit_number), output % kernels::kUnitOutputs, segment_terms(segment),
                           out + int64_t{segment} * full_segment_);
  }
}

}  // namespace cpuinfer::model
