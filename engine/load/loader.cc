#include "engine/load/loader.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <set>

#include "base/check.h"
#include "base/format.h"
#include "base/log.h"
#include "engine/load/blocks.h"
#include "numa/memory_limit.h"

namespace cpuinfer::load {
namespace {

using checkpoint::Checkpoint;
using checkpoint::PageCache;
using checkpoint::TensorReader;
using checkpoint::TensorRef;
using model::PackedMatrix;
using model::RowRun;
using model::WeightSpec;

std::string shape_text(const std::vector<int64_t>& shape) { return format("[{}]", fmt::join(shape, ", ")); }

// What the workers share while they load.
class Loading {
 public:
  Loading(const Checkpoint& checkpoint, const LoadOptions& options) : checkpoint_(checkpoint), options_(options) {}

  // Any worker, between units. True: give up.
  bool stopped() {
    if (options_.cancel != nullptr && options_.cancel->load(std::memory_order_relaxed))
      stop({ErrorCode::kInterrupted, "loading was interrupted"});
    return stopped_.load(std::memory_order_relaxed);
  }
  void stop(Error error) {
    const std::scoped_lock lock(mutex_);
    if (!error_) error_ = std::move(error);
    stopped_ = true;
  }
  const std::optional<Error>& error() const { return error_; }

  void add_done(int64_t bytes) { done_bytes_.fetch_add(bytes, std::memory_order_relaxed); }
  int64_t done_bytes() const { return done_bytes_.load(std::memory_order_relaxed); }
  // One worker, between blocks.
  void report() const {
    // Every node reads what it has a copy of.
    const int64_t total = checkpoint_.total_bytes();
    if (options_.progress) options_.progress(std::min(done_bytes(), total), total);
  }

  const Checkpoint& checkpoint() const { return checkpoint_; }

 private:
  const Checkpoint& checkpoint_;
  const LoadOptions& options_;
  std::atomic<bool> stopped_ = false;
  std::atomic<int64_t> done_bytes_ = 0;
  std::mutex mutex_;
  std::optional<Error> error_;
};

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// What one worker has done. In cache lines of its own.
struct alignas(128) Lane {
  std::vector<const std::byte*> extents;  // where those of its block begin
  double read_seconds = 0, pack_seconds = 0;
};

// Packs a unit of a block whose extents lie where `lane` says.
void pack_unit(const BlockList& list, const Block& block, const Lane& lane, int node, int64_t unit) {
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
      const std::byte* row = lane.extents[static_cast<size_t>(extent - extents.begin())] + (offset - extent->offset);
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
Result<void> load_block(Loading& loading, const TensorReader& reader, const BlockList& list, const Block& block,
                        int node, std::byte* buffer, Lane& lane) {
  const Clock::time_point start = Clock::now();
  lane.extents.clear();
  for (const Extent& extent : list.extents_of(block)) {
    if (loading.stopped()) return {};
    TRY_ASSIGN(const std::byte* const bytes, reader.read(*block.source->tensors[static_cast<size_t>(extent.tensor)],
                                                         extent.offset, extent.bytes, buffer));
    lane.extents.push_back(bytes);
    buffer += TensorReader::buffer_bytes(extent.bytes);
    loading.add_done(extent.bytes);
  }
  const double read_seconds = seconds_since(start);
  for (int64_t unit = block.units.begin; unit < block.units.end; ++unit) {
    if (loading.stopped()) return {};
    pack_unit(list, block, lane, node, unit);
  }
  lane.read_seconds += read_seconds;
  lane.pack_seconds += seconds_since(start) - read_seconds;
  return {};
}

// Converts a row of a tensor to float32 by way of bf16: the same rounding as for all weights.
Result<void> append_row(Loading& loading, const TensorRef& tensor, int64_t first, int count,
                        std::vector<float>& values) {
  const int width = dtype_bytes(tensor.dtype);
  std::vector<std::byte> bytes(static_cast<size_t>(count) * width);
  TRY(loading.checkpoint().read(tensor, first * width, bytes));
  loading.add_done(static_cast<int64_t>(bytes.size()));
  const int padded = round_up(count, kernels::kTileTerms);
  std::vector<bf16> unit(kernels::unit_elements(padded)), row(count);
  const std::byte* rows[kernels::kUnitOutputs] = {bytes.data()};
  kernels::pack_unit(rows, tensor.dtype, count, padded, unit.data());
  kernels::unpack_output(unit.data(), 0, count, row.data());
  for (const bf16 value : row) values.push_back(to_float(value));
  return {};
}

Result<void> load_vector(Loading& loading, const WeightSpec& spec) {
  std::vector<float> values;
  const auto tensor = [&](int index) -> const TensorRef& {
    return *loading.checkpoint().find(spec.tensors[index].name);
  };
  if (spec.outputs.empty()) TRY(append_row(loading, tensor(0), 0, static_cast<int>(spec.tensors[0].shape[0]), values));
  for (const RowRun& run : spec.outputs) TRY(append_row(loading, tensor(run.tensor), run.first, run.count, values));
  ENSURE(static_cast<int>(values.size()) == spec.vector->size(), "a vector has the elements of its tensors");
  for (int node = 0; node < spec.vector->nodes(); ++node)
    std::copy(values.begin(), values.end(), spec.vector->on(node).begin());
  return {};
}

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

}  // namespace

Result<void> check_tensors(model::Model& model, const Checkpoint& checkpoint) {
  std::optional<Error> error;
  std::set<std::string, std::less<>> used;
  model.visit_weights([&](const WeightSpec& spec) {
    std::optional<DType> dtype;
    for (const model::TensorSpec& wanted : spec.tensors) {
      if (error) return;
      used.insert(wanted.name);
      const TensorRef* const tensor = checkpoint.find(wanted.name);
      if (tensor == nullptr) {
        error = Error{ErrorCode::kBadInput, format("{}: tensor '{}' {} is missing", checkpoint.directory().string(),
                                                   wanted.name, shape_text(wanted.shape))};
      } else if (tensor->shape != wanted.shape) {
        error = Error{ErrorCode::kBadInput,
                      format("{}: '{}': expected {} by config.json, file has {}", checkpoint.directory().string(),
                             wanted.name, shape_text(wanted.shape), shape_text(tensor->shape))};
      } else if (dtype && *dtype != tensor->dtype) {
        error = Error{ErrorCode::kUnsupported,
                      format("{}: '{}' is {} and '{}' is {}: they must have one type", checkpoint.directory().string(),
                             spec.tensors[0].name, dtype_name(*dtype), wanted.name, dtype_name(tensor->dtype))};
      } else {
        dtype = tensor->dtype;
      }
    }
  });
  if (error) return std::unexpected(*error);
  int64_t unused = 0;
  std::string example;
  for (const TensorRef& tensor : checkpoint.tensors()) {
    // A tied checkpoint may still carry the copy of its embedding.
    if (used.contains(tensor.name) || tensor.name == "lm_head.weight") continue;
    if (unused++ == 0) example = tensor.name;
  }
  if (unused > 0)
    log_warn("{} tensors of the checkpoint are not part of the model and are ignored, '{}' first", unused, example);
  return {};
}

int64_t loader_stack_bytes(int workers) { return std::max(kLeastLoaders - workers, 0) * numa::thread_stack_bytes(); }

Result<WeightMemory> allocate_weights(model::Model& model, int nodes, const numa::Topology& topology) {
  // One buffer per node, handed out in the order of use.
  constexpr int64_t kAlignment = 64;
  const auto bytes_on = [](const WeightSpec& spec, int node) {
    return round_up(spec.matrix != nullptr ? spec.matrix->shard_bytes(node) : spec.vector->bytes(), kAlignment);
  };
  WeightMemory memory;
  for (int node = 0; node < nodes; ++node) {
    int64_t bytes = 0;
    model.visit_weights([&](const WeightSpec& spec) { bytes += bytes_on(spec, node); });
    TRY_ASSIGN(numa::NodeBuffer buffer, numa::NodeBuffer::allocate(bytes, node, topology, numa::Pages::kLargest));
    std::byte* next = buffer.data();
    model.visit_weights([&](const WeightSpec& spec) {
      if (spec.matrix != nullptr)
        spec.matrix->place(node, reinterpret_cast<bf16*>(next));
      else
        spec.vector->place(node, reinterpret_cast<float*>(next));
      next += bytes_on(spec, node);
    });
    memory.push_back(std::move(buffer));
  }
  return memory;
}

Result<void> read_weights(model::Model& model, const Checkpoint& checkpoint, numa::Team& team,
                          const numa::Topology& topology, const LoadOptions& options) {
  const Clock::time_point start = Clock::now();
  warn_of_conversion(model, checkpoint);

  std::vector<MatrixSource> matrices;
  Loading loading(checkpoint, options);
  std::optional<Error> vector_error;
  model.visit_weights([&](const WeightSpec& spec) {
    if (spec.matrix != nullptr) {
      MatrixSource& source = matrices.emplace_back(MatrixSource{spec.matrix, {}, spec.outputs});
      for (const model::TensorSpec& tensor : spec.tensors) source.tensors.push_back(checkpoint.find(tensor.name));
    } else if (!vector_error) {
      if (auto loaded = load_vector(loading, spec); !loaded) vector_error = loaded.error();
    }
  });
  if (vector_error) return std::unexpected(*vector_error);

  // Where the system gives no more threads, those that there are load more slowly.
  std::unique_ptr<numa::Team> more;
  if (team.workers() < kLeastLoaders)
    if (auto made = numa::Team::create(topology, {.threads = kLeastLoaders, .nodes = team.nodes()}))
      more = std::move(*made);
  numa::Team& loaders = more ? *more : team;

  const int64_t block_bytes = std::min(kBlockBytes, kBlocksBytes / loaders.workers());
  std::vector<BlockList> lists;
  for (int node = 0; node < loaders.nodes(); ++node) lists.push_back(make_blocks(matrices, node, block_bytes));
  // The page cache keeps a small checkpoint for the next start. A large one would push out what is still needed.
  const bool large = checkpoint.total_bytes() > numa::available_memory().bytes / 4;
  const TensorReader reader(checkpoint, options.page_cache.value_or(large ? PageCache::kSpare : PageCache::kFill));
  std::vector<std::atomic<int64_t>> next_blocks(lists.size());
  std::vector<Lane> lanes(loaders.workers());
  std::vector<numa::NodeBuffer> buffers(lists.size());  // a block for each worker of the node
  loaders.run([&](numa::Worker& worker) {
    const BlockList& list = lists[worker.node];
    if (worker.rank_in_node == 0) {
      // In huge pages: the disk's requests then have few pieces.
      constexpr int64_t kHugePage = 2_MiB;
      auto buffer = numa::NodeBuffer::allocate(std::max(worker.count_in_node * list.buffer_bytes, kHugePage),
                                               worker.node, topology);
      if (buffer)
        buffers[worker.node] = std::move(*buffer);
      else
        loading.stop(std::move(buffer).error());
    }
    worker.barrier();
    if (loading.stopped()) return;
    std::byte* const block = buffers[worker.node].data() + worker.rank_in_node * list.buffer_bytes;
    Lane& lane = lanes[worker.rank];
    lane.extents.reserve(static_cast<size_t>(list.most_extents));
    for (;;) {
      const int64_t i = next_blocks[worker.node].fetch_add(1, std::memory_order_relaxed);
      if (i >= static_cast<int64_t>(list.blocks.size()) || loading.stopped()) return;
      auto loaded = load_block(loading, reader, list, list.blocks[i], worker.node, block, lane);
      if (!loaded) loading.stop(std::move(loaded).error());
      if (worker.rank == 0) loading.report();
    }
  });
  if (loading.error()) return std::unexpected(*loading.error());
  loading.report();
  if (options.statistics != nullptr) {
    LoadStatistics& statistics = *options.statistics;
    int64_t buffer_bytes = 0;
    for (const numa::NodeBuffer& buffer : buffers) buffer_bytes += buffer.size();
    statistics = {.bytes = loading.done_bytes(),
                  .direct_bytes = reader.direct_bytes(),
                  .buffer_bytes = buffer_bytes,
                  .workers = loaders.workers(),
                  .seconds = seconds_since(start)};
    for (const Lane& lane : lanes) {
      statistics.read_seconds += lane.read_seconds;
      statistics.pack_seconds += lane.pack_seconds;
    }
  }
  return {};
}

Result<WeightMemory> load_weights(model::Model& model, const Checkpoint& checkpoint, numa::Team& team,
                                  const numa::Topology& topology, const LoadOptions& options) {
  TRY_ASSIGN(WeightMemory memory, allocate_weights(model, team.nodes(), topology));
  TRY(read_weights(model, checkpoint, team, topology, options));
  return memory;
}

}  // namespace cpuinfer::load
