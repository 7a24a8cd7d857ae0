#include "engine/load/loader.h"

#include <algorithm>
#include <mutex>
#include <optional>
#include <set>

#include "base/format.h"
#include "base/log.h"
#include "numa/memory_limit.h"

namespace cpuinfer::load {
namespace {

using checkpoint::Checkpoint;
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
  // One worker, between units.
  void report() const {
    if (options_.progress) options_.progress(done_bytes_.load(std::memory_order_relaxed), checkpoint_.total_bytes());
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

// Where the outputs of a matrix come from. Made before the workers start, read by all of them.
struct MatrixSource {
  PackedMatrix* matrix;
  std::vector<const TensorRef*> tensors;
  std::span<const RowRun> runs;  // empty: the only tensor as it is

  // What output `output` is part of: the rest of a run from there on.
  RowRun rest_of_run(int64_t output) const {
    const int row = static_cast<int>(output);
    if (runs.empty()) return {0, row, matrix->outputs() - row, row};
    const auto after = [](int wanted, const RowRun& run) { return wanted < run.output; };
    const RowRun& run = *(std::upper_bound(runs.begin(), runs.end(), row, after) - 1);
    const int skip = row - run.output;
    return {run.tensor, run.first + skip, run.count - skip, row};
  }
};

// Reads the 16 rows of a unit into `buffer` [16 rows][terms * 4 bytes] and packs them to their place.
Result<void> pack_unit(Loading& loading, const MatrixSource& source, int node, int64_t unit, std::byte* buffer) {
  const PackedMatrix& matrix = *source.matrix;
  const int64_t terms = matrix.terms();
  const DType dtype = source.tensors.front()->dtype;  // check_tensors: all have one
  const int64_t row_bytes = terms * dtype_bytes(dtype);
  const std::byte* rows[kernels::kUnitOutputs] = {};
  const int64_t first = unit * kernels::kUnitOutputs;
  const int64_t end = std::min<int64_t>(first + kernels::kUnitOutputs, matrix.outputs());
  for (int64_t output = first; output < end;) {
    const RowRun run = source.rest_of_run(output);
    const int64_t count = std::min<int64_t>(run.count, end - output);
    if (run.tensor >= 0) {
      std::byte* const target = buffer + (output - first) * row_bytes;
      TRY(loading.checkpoint().read(*source.tensors[run.tensor], run.first * row_bytes,
                                    {target, static_cast<size_t>(count * row_bytes)}));
      for (int64_t i = 0; i < count; ++i) rows[output - first + i] = target + i * row_bytes;
      loading.add_done(count * row_bytes);
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
  spec.vector->clear();
  const auto tensor = [&](int index) -> const TensorRef& {
    return *loading.checkpoint().find(spec.tensors[index].name);
  };
  if (spec.outputs.empty())
    return append_row(loading, tensor(0), 0, static_cast<int>(spec.tensors[0].shape[0]), *spec.vector);
  for (const RowRun& run : spec.outputs)
    TRY(append_row(loading, tensor(run.tensor), run.first, run.count, *spec.vector));
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

Result<WeightMemory> load_weights(model::Model& model, const Checkpoint& checkpoint, numa::Team& team,
                                  const numa::Topology& topology, const LoadOptions& options) {
  warn_of_conversion(model, checkpoint);

  WeightMemory memory;
  std::vector<MatrixSource> matrices;
  int64_t longest_row = 0;
  Loading loading(checkpoint, options);
  std::optional<Error> vector_error;
  model.visit_weights([&](const WeightSpec& spec) {
    if (spec.matrix != nullptr) {
      MatrixSource& source = matrices.emplace_back(MatrixSource{spec.matrix, {}, spec.outputs});
      for (const model::TensorSpec& tensor : spec.tensors) source.tensors.push_back(checkpoint.find(tensor.name));
      longest_row = std::max<int64_t>(longest_row, spec.matrix->terms());
    } else if (!vector_error) {
      if (auto loaded = load_vector(loading, spec); !loaded) vector_error = loaded.error();
    }
  });
  if (vector_error) return std::unexpected(*vector_error);

  // One buffer per node, handed out in the order of use.
  constexpr int64_t kAlignment = 64;
  for (int node = 0; node < team.nodes(); ++node) {
    int64_t bytes = 0;
    for (const MatrixSource& source : matrices) bytes += round_up(source.matrix->shard_bytes(node), kAlignment);
    TRY_ASSIGN(numa::NodeBuffer buffer, numa::NodeBuffer::allocate(bytes, node, topology));
    std::byte* next = buffer.data();
    for (const MatrixSource& source : matrices) {
      source.matrix->place(node, reinterpret_cast<bf16*>(next));
      next += round_up(source.matrix->shard_bytes(node), kAlignment);
    }
    memory.push_back(std::move(buffer));
  }

  std::vector<std::vector<std::byte>> buffers(team.workers());
  for (auto& buffer : buffers) buffer.resize(static_cast<size_t>(kernels::kUnitOutputs * longest_row * 4));
  team.run([&](numa::Worker& worker) {
    for (const MatrixSource& source : matrices) {
      const numa::Range shard = source.matrix->shard(worker.node).units;
      const numa::Range share = numa::split(shard.count(), worker.count_in_node, worker.rank_in_node);
      for (int64_t unit = shard.begin + share.begin; unit < shard.begin + share.end; ++unit) {
        if (loading.stopped()) return;
        auto packed = pack_unit(loading, source, worker.node, unit, buffers[worker.rank].data());
        if (!packed) loading.stop(std::move(packed).error());
        if (worker.rank == 0) loading.report();
      }
    }
  });
  if (loading.error()) return std::unexpected(*loading.error());
  loading.report();
  // The files stay in the page cache, for the next start, unless they would crowd out what is still to be allocated.
  if (checkpoint.total_bytes() > numa::available_memory().bytes / 4)
    for (const TensorRef& tensor : checkpoint.tensors()) checkpoint.drop_pages(tensor);
  return memory;
}

}  // namespace cpuinfer::load
