// How a part of a packed file is read into a slot: a piece of memory on every node that any part of its kind fits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/load/packed_layout.h"

namespace cpuinfer::load {

/// The reads of one part, the same for all parts of its kind (all experts, the attention of all layers, all MLPs):
/// offsets are from the beginning of the part, which is a whole page. Each node reads the pages that its units lie in.
struct PartReads {
  struct Extent {
    int node = 0;
    int64_t part_offset = 0, slot_offset = 0, bytes = 0;  ///< whole pages
  };
  /// Where a matrix begins in the slot of a node.
  struct Place {
    int node = 0;
    size_t weight = 0;  ///< number in the part
    int64_t slot_offset = 0;
  };
  /// Bytes that have to be moved inside of a slot after reading: units of a matrix in segments, which are together in
  /// memory but, of a slice, not in the file.
  struct Move {
    int node = 0;
    int64_t from = 0, to = 0, bytes = 0;  ///< they do not overlap
  };
  std::vector<Extent> extents;
  std::vector<Place> places;
  std::vector<Move> moves;
  std::vector<int64_t> slot_bytes;  ///< [nodes] whole pages

  int64_t read_bytes() const;
};

/// REQUIRES: all weights of the part are matrices, none of them a copy on every node.
PartReads make_part_reads(std::span<const PackedWeight> weights, int64_t part_offset, int nodes);

}  // namespace cpuinfer::load
