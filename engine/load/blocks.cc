#include "engine/load/blocks.h"

#include <algorithm>
#include <tuple>

#include "engine/checkpoint/tensor_reader.h"

namespace cpuinfer::load {

using checkpoint::TensorReader;
using model::RowRun;

RowRun MatrixSource::rest_of_run(int64_t output) const {
  const int row = static_cast<int>(output);
  if (runs.empty()) return {0, row, matrix->outputs() - row, row};
  const auto after = [](int wanted, const RowRun& run) { return wanted < run.output; };
  const RowRun& run = *(std::upper_bound(runs.begin(), runs.end(), row, after) - 1);
  const int skip = row - run.output;
  return {run.tensor, run.first + skip, run.count - skip, row};
}

namespace {

// Appends the extents of some units. Runs that continue each other, perhaps after runs of other tensors, are one
// extent: the rows of gate and up, which take turns by 8, are two.
void add_extents(const MatrixSource& source, numa::Range units, std::vector<Extent>& extents) {
  const int64_t row_bytes = source.row_bytes();
  const size_t first_extent = extents.size();
  const int64_t end = std::min<int64_t>(units.end * kernels::kUnitOutputs, source.matrix->outputs());
  for (int64_t output = units.begin * kernels::kUnitOutputs; output < end;) {
    const RowRun run = source.rest_of_run(output);
    const int64_t rows = std::min<int64_t>(run.count, end - output);
    output += rows;
    if (run.tensor < 0) continue;  // rows of zeros
    const Extent extent = {run.tensor, run.first * row_bytes, rows * row_bytes};
    const auto continues = std::find_if(extents.begin() + first_extent, extents.end(), [&](const Extent& e) {
      return e.tensor == extent.tensor && e.offset + e.bytes == extent.offset;
    });
    if (continues == extents.end())
      extents.push_back(extent);
    else
      continues->bytes += extent.bytes;
  }
}

int64_t buffer_of(std::span<const Extent> extents) {
  int64_t bytes = 0;
  for (const Extent& extent : extents) bytes += TensorReader::buffer_bytes(extent.bytes);
  return bytes;
}

}  // namespace

BlockList make_blocks(std::span<const MatrixSource> sources, int node, int64_t block_bytes) {
  BlockList list;
  for (const MatrixSource& source : sources) {
    const numa::Range units = source.matrix->shard(node).units;
    const int64_t block_units = std::max<int64_t>(block_bytes / (kernels::kUnitOutputs * source.row_bytes()), 1);
    // Of equal size: no small block at the end.
    const int64_t count = (units.count() + block_units - 1) / block_units;
    for (int64_t i = 0; i < count; ++i) {
      const numa::Range share = numa::split(units.count(), static_cast<int>(count), static_cast<int>(i));
      Block block = {&source, {units.begin + share.begin, units.begin + share.end}};
      block.first_extent = static_cast<int64_t>(list.extents.size());
      add_extents(source, block.units, list.extents);
      block.extents = static_cast<int64_t>(list.extents.size()) - block.first_extent;
      if (block.extents == 0) continue;  // rows of zeros
      list.buffer_bytes = std::max(list.buffer_bytes, buffer_of(list.extents_of(block)));
      list.most_extents = std::max(list.most_extents, block.extents);
      list.blocks.push_back(block);
    }
  }
  const auto place = [&](const Block& block) {
    const Extent& first = list.extents[static_cast<size_t>(block.first_extent)];
    const checkpoint::TensorRef& tensor = *block.source->tensors[static_cast<size_t>(first.tensor)];
    return std::tuple(tensor.file, tensor.file_offset + first.offset);
  };
  std::sort(list.blocks.begin(), list.blocks.end(),
            [&](const Block& a, const Block& b) { return place(a) < place(b); });
  return list;
}

}  // namespace cpuinfer::load
