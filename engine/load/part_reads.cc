#include "engine/load/part_reads.h"

#include <algorithm>

#include "base/types.h"

namespace cpuinfer::load {
namespace {

// Appends the pages of [begin, end) of the part to what a node reads, and returns where `begin` is in its slot.
int64_t add_extent(PartReads& reads, int node, int64_t begin, int64_t end) {
  const int64_t first = begin / kPackedAlignment * kPackedAlignment, last = round_up(end, kPackedAlignment);
  const bool continues = !reads.extents.empty() && reads.extents.back().node == node &&
                         reads.extents.back().part_offset <= first &&
                         first <= reads.extents.back().part_offset + reads.extents.back().bytes;
  if (!continues) reads.extents.push_back({node, first, reads.slot_bytes[static_cast<size_t>(node)], 0});
  PartReads::Extent& extent = reads.extents.back();
  extent.bytes = std::max(extent.bytes, last - extent.part_offset);
  reads.slot_bytes[static_cast<size_t>(node)] = extent.slot_offset + extent.bytes;
  return extent.slot_offset + begin - extent.part_offset;
}

}  // namespace

int64_t PartReads::read_bytes() const {
  int64_t bytes = 0;
  for (const Extent& extent : extents) bytes += extent.bytes;
  return bytes;
}

PartReads make_part_reads(std::span<const PackedWeight> weights, int64_t part_offset, int nodes) {
  PartReads reads;
  reads.slot_bytes.assign(static_cast<size_t>(nodes), 0);
  for (int node = 0; node < nodes; ++node) {
    std::vector<PartReads::Move> moves;
    for (size_t w = 0; w < weights.size(); ++w) {
      const model::PackedMatrix& matrix = *weights[w].spec.matrix;
      const int64_t begin = weights[w].offset - part_offset;
      const int64_t unit_bytes = matrix.unit_elements() * static_cast<int64_t>(sizeof(bf16));
      const numa::Range units = matrix.shard(node).units;
      if (units.count() == 0) {
        reads.places.push_back({node, w, 0});
        continue;
      }
      if (matrix.segments() == 1 || units.count() == matrix.units()) {
        const int64_t bytes = matrix.shard_bytes(node);
        const int64_t offset = begin + units.begin * unit_bytes;
        reads.places.push_back({node, w, add_extent(reads, node, offset, offset + bytes)});
        continue;
      }
      reads.places.push_back({node, w, -1});  // where its segments are moved to; below
      for (int segment = 0; segment < matrix.segments(); ++segment) {
        const int64_t offset = begin + (int64_t{segment} * matrix.units() + units.begin) * unit_bytes;
        const int64_t bytes = units.count() * unit_bytes;
        moves.push_back({node, add_extent(reads, node, offset, offset + bytes), 0, bytes});
      }
    }
    size_t next_move = 0;
    for (PartReads::Place& place : reads.places) {
      if (place.node != node || place.slot_offset >= 0) continue;
      int64_t& end = reads.slot_bytes[static_cast<size_t>(node)];
      place.slot_offset = end;
      const model::PackedMatrix& matrix = *weights[place.weight].spec.matrix;
      for (int segment = 0; segment < matrix.segments(); ++segment) {
        moves[next_move].to = end;
        end += moves[next_move++].bytes;
      }
      end = round_up(end, kPackedAlignment);
    }
    reads.moves.insert(reads.moves.end(), moves.begin(), moves.end());
  }
  return reads;
}

}  // namespace cpuinfer::load
