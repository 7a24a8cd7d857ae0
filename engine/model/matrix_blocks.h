// How a worker walks through its part of a packed matrix product.
#pragma once

#include <algorithm>

#include "engine/model/ops.h"

namespace cpuinfer::model {

/// Some units of a matrix (all on the worker's node) times some rows.
struct MatrixBlock {
  numa::Range units;
  int first_row = 0;
  int row_count = 0;
};

/// Units per block: few enough that the packed weights stay in the second-level cache while row blocks go by, and that
/// a block of outputs fits WorkerScratch::block.
inline int64_t units_per_block(const PackedMatrix& matrix) {
  constexpr int64_t kWeightBytes = 1024 * 1024;
  const int64_t unit_bytes = matrix.unit_elements() * static_cast<int64_t>(sizeof(bf16));
  return std::clamp<int64_t>(kWeightBytes / unit_bytes, 1, kBlockOutputs / kernels::kUnitOutputs);
}

/// The units of `matrix` that this worker computes at first: its share of what lies on its node.
inline numa::Range worker_units(const Lane& lane, const PackedMatrix& matrix) {
  const numa::Range shard = matrix.shard(lane.worker.node).units;
  const numa::Range share = numa::split(shard.count(), lane.worker.count_in_node, lane.worker.rank_in_node);
  return {shard.begin + share.begin, shard.begin + share.end};
}

/// Asks for the beginning of the streams that a product with units `units` of `matrix` will read.
inline void prefetch_units(const Lane& lane, const PackedMatrix& matrix, numa::Range units) {
  constexpr int64_t kStreams = 4, kStreamBytes = 4096, kLineBytes = 64;
  if (units.count() == 0 || matrix.shard(lane.worker.node).data == nullptr) return;  // not there yet
  const int64_t block = std::min(units_per_block(matrix), units.count());
  for (int64_t stream = 0; stream < std::min(kStreams, block); ++stream) {
    const bf16* const unit =
        matrix.unit(lane.worker.node, 0, units.begin + stream * (block / std::min(kStreams, block)));
    const char* const bytes = reinterpret_cast<const char*>(unit);
    const int64_t count = std::min<int64_t>(kStreamBytes, matrix.unit_elements() * static_cast<int64_t>(sizeof(bf16)));
    for (int64_t i = 0; i < count; i += kLineBytes) __builtin_prefetch(bytes + i, 0, 2);
  }
}

/// Bytes of `units` units of all segments of a matrix.
inline int64_t weight_bytes(const PackedMatrix& matrix, int64_t units) {
  return units * matrix.segments() * matrix.unit_elements() * static_cast<int64_t>(sizeof(bf16));
}

/// Multiplications and additions of `rows` rows with units [units.begin, units.end), without padding.
inline int64_t product_flops(const PackedMatrix& matrix, numa::Range units, int64_t rows) {
  const int64_t end = std::min<int64_t>(units.end * kernels::kUnitOutputs, matrix.outputs());
  const int64_t outputs = std::max<int64_t>(end - units.begin * kernels::kUnitOutputs, 0);
  return 2 * rows * outputs * matrix.terms();
}

/// Pieces of work are at least this many units: streams long enough for the prefetchers.
inline constexpr int64_t kLeastUnits = 4;

/// Calls body(MatrixBlock) for rows 0..count-1 and `units`, in blocks of rows.
template <typename Body>
void for_each_row_block(numa::Range units, int count, Body&& body) {
  for (int row = 0; row < count; row += kRowBlock) body(MatrixBlock{units, row, std::min(kRowBlock, count - row)});
}

/// Calls body(numa::Range) for pieces of at most `most` units until those of the node are all taken. This worker begins
/// with `share` and then helps others.
template <typename Body>
void for_each_piece(Lane& lane, numa::Range share, int64_t most, Body&& body) {
  lane.worker.deal(share);
  for (numa::Range piece = lane.worker.take(std::min(kLeastUnits, most), most); piece.count() > 0;
       piece = lane.worker.take(std::min(kLeastUnits, most), most)) {
    body(piece);
  }
}

}  // namespace cpuinfer::model
