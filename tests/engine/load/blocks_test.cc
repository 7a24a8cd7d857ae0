#include "engine/load/blocks.h"

#include <algorithm>

#include "engine/checkpoint/tensor_reader.h"
#include "tests/engine/load/loader_data.h"

using namespace cpuinfer;
using namespace cpuinfer::load;

namespace {

// A matrix of three tensors in turns, as q, k and v are, with rows of zeros among them.
struct Example {
  model::PackedMatrix matrix;
  std::vector<model::RowRun> runs;
  std::vector<checkpoint::TensorRef> tensors;
  std::vector<MatrixSource> sources;

  Example(int turns, int terms, int nodes) : matrix(turns * 33, terms, 0, model::Placement::even(nodes).sliced()) {
    for (int turn = 0; turn < turns; ++turn) {
      runs.push_back({0, turn * 20, 20, turn * 33});
      runs.push_back({1, turn * 5, 5, turn * 33 + 20});
      runs.push_back({-1, 0, 3, turn * 33 + 25});
      runs.push_back({2, turn * 5, 5, turn * 33 + 28});
    }
    const int64_t row = int64_t{terms} * 2;
    // In the order of names, which is not that of use.
    tensors = {{"q", DType::kBF16, {turns * 20, terms}, turns * 20 * row, 0, 1000 + turns * 10 * row},
               {"k", DType::kBF16, {turns * 5, terms}, turns * 5 * row, 0, 1000},
               {"v", DType::kBF16, {turns * 5, terms}, turns * 5 * row, 1, 500}};
    sources.push_back({&matrix, {&tensors[0], &tensors[1], &tensors[2]}, runs});
  }
};

}  // namespace

TEST_CASE("blocks have every unit once, every row once, and no more than they may") {
  for (const int nodes : {1, 3}) {
    for (const int64_t block_bytes : {int64_t{1}, int64_t{5000}, int64_t{20000}, 1_MiB}) {
      const Example example(50, 72, nodes);
      const int64_t row_bytes = example.sources[0].row_bytes();
      std::vector<std::vector<int>> rows(3);
      for (int t = 0; t < 3; ++t) rows[t].resize(example.tensors[t].shape[0]);
      for (int node = 0; node < nodes; ++node) {
        const BlockList list = make_blocks(example.sources, node, block_bytes);
        std::vector<numa::Range> units;
        std::pair<int, int64_t> last = {-1, 0};
        for (const Block& block : list.blocks) {
          units.push_back(block.units);
          int64_t bytes = 0, buffer_bytes = 0;
          for (const Extent& extent : list.extents_of(block)) {
            bytes += extent.bytes;
            buffer_bytes += checkpoint::TensorReader::buffer_bytes(extent.bytes);
            CHECK(extent.offset % row_bytes == 0);
            for (int64_t at = extent.offset; at < extent.offset + extent.bytes; at += row_bytes)
              ++rows[extent.tensor].at(static_cast<size_t>(at / row_bytes));
          }
          CHECK(bytes <= std::max(block_bytes, 16 * row_bytes));
          CHECK(buffer_bytes <= list.buffer_bytes);
          CHECK(block.extents <= list.most_extents);
          const Extent& first = list.extents_of(block)[0];
          const checkpoint::TensorRef& tensor = example.tensors[first.tensor];
          const std::pair place = {tensor.file, tensor.file_offset + first.offset};
          CHECK(place >= last);
          last = place;
        }
        std::sort(units.begin(), units.end(), [](numa::Range a, numa::Range b) { return a.begin < b.begin; });
        const numa::Range all = example.matrix.shard(node).units;
        int64_t next = all.begin;
        for (const numa::Range& range : units) {
          CHECK(range.begin == next);
          CHECK(range.count() > 0);
          next = range.end;
        }
        CHECK(next == all.end);
      }
      for (const auto& tensor : rows)
        CHECK(std::all_of(tensor.begin(), tensor.end(), [](int times) { return times == 1; }));
    }
  }
}

TEST_CASE("rows that take turns are one extent per tensor") {
  const Example example(50, 72, 1);
  const BlockList list = make_blocks(example.sources, 0, 1_MiB);
  REQUIRE(list.blocks.size() == 1);
  CHECK(list.extents.size() == 3);
  CHECK(list.blocks[0].units == numa::Range{0, example.matrix.units()});
}
