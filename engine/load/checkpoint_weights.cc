#include "engine/load/checkpoint_weights.h"

#include <algorithm>
#include <atomic>
#include <set>
#include <string>

#include "base/check.h"
#include "base/format.h"
#include "base/log.h"
#include "numa/memory_limit.h"

namespace cpuinfer::load {

using checkpoint::Checkpoint;
using checkpoint::PageCache;
using checkpoint::TensorReader;
using checkpoint::TensorRef;
using model::PackedMatrix;
using model::RowRun;
using model::WeightSpec;

namespace {

void warn_of_conversion(model::Model& model, const Checkpoint& checkpoint) {
  int64_t count = 0;
  std::set<std::string> kinds;
  model.visit_weights([&](const WeightSpec& spec) {
    for (const model::TensorSpec& wanted : spec.tensors) {
      const TensorRef& tensor = *checkpoint.find(wanted.name);
      if (tensor.dtype == DType::kBF16) continue;
      ++count;
      kinds.insert(dtype_name(tensor.dtype));
    }
  });
  if (count == 0) return;
  log_warn(
      "{} {} tensors are rounded to bf16: 8 bits of precision are kept (F16 has 11, F32 has 24), so the numbers differ "
      "slightly from the checkpoint's own",
      count, fmt::join(kinds, " and "));
}

// The page cache keeps a small checkpoint for the next start. A large one would push out what is still needed.
PageCache choose_page_cache(const Checkpoint& checkpoint, const LoadOptions& options) {
  const bool large = checkpoint.total_bytes() > numa::available_memory().bytes / 4;
  return options.page_cache.value_or(large ? PageCache::kSpare : PageCache::kFill);
}

}  // namespace

std::unique_ptr<numa::Team> more_loaders(const numa::Team& team, const numa::Topology& topology) {
  if (team.workers() >= kLeastLoaders) return nullptr;
  auto made = numa::Team::create(topology, {.threads = kLeastLoaders, .nodes = team.nodes()});
  return made ? std::move(*made) : nullptr;
}

CheckpointWeights::CheckpointWeights(model::Model& model, const Checkpoint& checkpoint, numa::Team& team,
                                     const numa::Topology& topology, const LoadOptions& options)
    : checkpoint_(checkpoint),
      team_(team),
      topology_(topology),
      more_(more_loaders(team, topology)),
      reader_(checkpoint, choose_page_cache(checkpoint, options)),
      loading_(options, checkpoint.total_bytes()),
      shares_(static_cast<size_t>(loaders().workers())),
      buffers_(static_cast<size_t>(team.nodes())) {
  warn_of_conversion(model, checkpoint);
}

Result<void> CheckpointWeights::read(std::span<const WeightSpec> specs) {
  const Clock::time_point start = Clock::now();
  std::vector<MatrixSource> matrices;
  for (const WeightSpec& spec : specs) {
    if (spec.matrix == nullptr) {
      TRY(load_vector(spec));
      continue;
    }
    MatrixSource& source = matrices.emplace_back(MatrixSource{spec.matrix, {}, spec.outputs});
    for (const model::TensorSpec& tensor : spec.tensors) source.tensors.push_back(checkpoint_.find(tensor.name));
  }
  TRY(read_matrices(matrices));
  seconds_ += seconds_since(start);
  return {};
}

Result<void> CheckpointWeights::read_matrices(std::span<const MatrixSource> matrices) {
  const int64_t block_bytes = std::min(kBlockBytes, kBlocksBytes / loaders().workers());
  std::vector<BlockList> lists;
  for (int node = 0; node < loaders().nodes(); ++node) lists.push_back(make_blocks(matrices, node, block_bytes));
  std::vector<std::atomic<int64_t>> next_blocks(lists.size());
  loaders().run([&](numa::Worker& worker) {
    const BlockList& list = lists[worker.node];
    if (worker.rank_in_node == 0) {
      // In huge pages: the disk's requests then have few pieces.
      constexpr int64_t kHugePage = 2_MiB;
      const int64_t bytes = std::max(worker.count_in_node * list.buffer_bytes, kHugePage);
      if (buffers_[worker.node].size() < bytes) {
        auto buffer = numa::NodeBuffer::allocate(bytes, worker.node, topology_);
        if (buffer)
          buffers_[worker.node] = std::move(*buffer);
        else
          loading_.stop(std::move(buffer).error());
      }
    }
    worker.barrier();
    if (loading_.stopped()) return;
    std::byte* const block = buffers_[worker.node].data() + worker.rank_in_node * list.buffer_bytes;
    WorkerShare& share = shares_[worker.rank];
    share.extents.reserve(static_cast<size_t>(list.most_extents));
    for (;;) {
      const int64_t i = next_blocks[worker.node].fetch_add(1, std::memory_order_relaxed);
      if (i >= static_cast<int64_t>(list.blocks.size()) || loading_.stopped()) return;
      auto loaded = load_block(list, list.blocks[i], worker.node, block, share);
      if (!loaded) loading_.stop(std::move(loaded).error());
      if (worker.rank == 0) loading_.report();
    }
  });
  TRY(loading_.result());
  loading_.report();
  return {};
}

LoadStatistics CheckpointWeights::statistics() const {
  LoadStatistics statistics = {.bytes = loading_.done_bytes(),
                               .direct_bytes = reader_.direct_bytes(),
                               .workers = static_cast<int>(shares_.size()),
                               .seconds = seconds_};
  for (const numa::NodeBuffer& buffer : buffers_) statistics.buffer_bytes += buffer.size();
  for (const WorkerShare& share : shares_) {
    statistics.read_seconds += share.read_seconds;
    statistics.pack_seconds += share.pack_seconds;
  }
  return statistics;
}

// Packs a unit of a block whose extents lie where `lane` says.
void CheckpointWeights::pack_unit(const BlockList& list, const Block& block, const WorkerShare& share, int node,
                                  int64_t unit) {
  const MatrixSource& source = *block.source;
  const PackedMatrix& matrix = *source.matrix;
  const DType dtype = source.dtype();
  const int64_t row_bytes = source.row_bytes();
  const std::span<const Extent> extents = list.extents_of(block);
  const std::byte* rows[kernels::kUnitOutputs] = {};
  const int64_t first = unit * kernels::kUnitOutputs;
  const int64_t end = std::min<int64_t>(first + kernels::kUnitOutputs, matrix.outputs());
  for (int64_t output = first; output < end;) {
    const RowRun run = source.rest_of_run(output);
    const int64_t count = std::min<int64_t>(run.count, end - output);
    if (run.tensor >= 0) {
      const int64_t offset = run.first * row_bytes;
      const auto extent = std::find_if(extents.begin(), extents.end(), [&](const Extent& e) {
        return e.tensor == run.tensor && e.offset <= offset && offset < e.offset + e.bytes;
      });
      ENSURE(extent != extents.end(), "a block has the rows of its units");
      const std::byte* row = share.extents[static_cast<size_t>(extent - extents.begin())] + (offset - extent->offset);
      for (int64_t i = 0; i < count; ++i, row += row_bytes) rows[output - first + i] = row;
    }
    output += count;
  }
  for (int segment = 0; segment < matrix.segments(); ++segment) {
    const std::byte* segment_rows[kernels::kUnitOutputs];
    const int64_t offset = int64_t{segment} * matrix.segment_terms(0) * dtype_bytes(dtype);
    for (int i = 0; i < kernels::kUnitOutputs; ++i) segment_rows[i] = rows[i] == nullptr ? nullptr : rows[i] + offset;
    kernels::pack_unit(segment_rows, dtype, matrix.segment_terms(segment), matrix.segment_stride(),
                       matrix.unit(node, segment, unit));
  }
}

// Reads the extents of a block into `buffer` and packs its units to their places. Ends early when loading stops.
Result<void> CheckpointWeights::load_block(const BlockList& list, const Block& block, int node, std::byte* buffer,
                                           WorkerShare& share) {
  const Clock::time_point start = Clock::now();
  share.extents.clear();
  for (const Extent& extent : list.extents_of(block)) {
    if (loading_.stopped()) return {};
    TRY_ASSIGN(const std::byte* const bytes, reader_.read(*block.source->tensors[static_cast<size_t>(extent.tensor)],
                                                          extent.offset, extent.bytes, buffer));
    share.extents.push_back(bytes);
    buffer += TensorReader::buffer_bytes(extent.bytes);
    loading_.add_done(extent.bytes);
  }
  const double read_seconds = seconds_since(start);
  for (int64_t unit = block.units.begin; unit < block.units.end; ++unit) {
    if (loading_.stopped()) return {};
    pack_unit(list, block, share, node, unit);
  }
  share.read_seconds += read_seconds;
  share.pack_seconds += seconds_since(start) - read_seconds;
  return {};
}

// Converts a row of a tensor to float32 by way of bf16: the same rounding as for all weights.
Result<void> CheckpointWeights::append_row(const TensorRef& tensor, int64_t first, int count,
                                           std::vector<float>& values) {
  const int width = dtype_bytes(tensor.dtype);
  std::vector<std::byte> bytes(static_cast<size_t>(count) * width);
  TRY(checkpoint_.read(tensor, first * width, bytes));
  loading_.add_done(static_cast<int64_t>(bytes.size()));
  const int padded = round_up(count, kernels::kTileTerms);
  std::vector<bf16> unit(kernels::unit_elements(padded)), row(count);
  const std::byte* rows[kernels::kUnitOutputs] = {bytes.data()};
  kernels::pack_unit(rows, tensor.dtype, count, padded, unit.data());
  kernels::unpack_output(unit.data(), 0, count, row.data());
  for (const bf16 value : row) values.push_back(to_float(value));
  return {};
}

Result<void> CheckpointWeights::load_vector(const WeightSpec& spec) {
  std::vector<float> values;
  const auto tensor = [&](int index) -> const TensorRef& { return *checkpoint_.find(spec.tensors[index].name); };
  if (spec.outputs.empty()) TRY(append_row(tensor(0), 0, static_cast<int>(spec.tensors[0].shape[0]), values));
  for (const RowRun& run : spec.outputs) TRY(append_row(tensor(run.tensor), run.first, run.count, values));
  ENSURE(static_cast<int>(values.size()) == spec.vector->size(), "a vector has the elements of its tensors");
  for (int node = 0; node < spec.vector->nodes(); ++node)
    std::copy(values.begin(), values.end(), spec.vector->on(node).begin());
  return {};
}

}  // namespace cpuinfer::load
