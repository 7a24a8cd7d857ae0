// What is read at once: the units of a matrix in blocks of about a megabyte, in the order of the files.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/checkpoint/checkpoint.h"
#include "engine/model/weights.h"
#include "numa/shard.h"

namespace cpuinfer::load {

/// Where the outputs of a matrix come from. Made before the workers start, read by all of them.
struct MatrixSource {
  model::PackedMatrix* matrix;
  std::vector<const checkpoint::TensorRef*> tensors;
  std::span<const model::RowRun> runs;  ///< empty: the only tensor as it is

  DType dtype() const { return tensors.front()->dtype; }  // check_tensors: all have one
  int64_t row_bytes() const { return int64_t{matrix->terms()} * dtype_bytes(dtype()); }
  /// What output `output` is part of: the rest of a run from there on.
  model::RowRun rest_of_run(int64_t output) const;
};

/// Consecutive bytes of a tensor.
struct Extent {
  int tensor = 0;  ///< index into MatrixSource::tensors
  int64_t offset = 0, bytes = 0;
};

/// Some consecutive units of a matrix and all extents that their outputs are made of.
struct Block {
  const MatrixSource* source;
  numa::Range units;
  int64_t first_extent = 0, extents = 0;  ///< in BlockList::extents
};

/// The blocks of one node, in the order of their places in the files.
struct BlockList {
  std::vector<Block> blocks;
  std::vector<Extent> extents;
  int64_t buffer_bytes = 0;  ///< that TensorReader needs for the largest block
  int64_t most_extents = 0;  ///< of one block

  std::span<const Extent> extents_of(const Block& block) const {
    return std::span(extents).subspan(block.first_extent, block.extents);
  }
};

/// Cuts the units that `node` holds of all matrices into blocks of at most `block_bytes` in the files; a block is one
/// unit if that alone has more. Views `sources`.
BlockList make_blocks(std::span<const MatrixSource> sources, int node, int64_t block_bytes);

}  // namespace cpuinfer::load
