#include "engine/load/loader.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <optional>
#include <set>

#include "base/check.h"
#include "base/format.h"
#include "base/log.h"

namespace cpuinfer::load {
namespace {

using checkpoint::Checkpoint;
using checkpoint::TensorRef;
using model::PackedMatrix;
using model::RowRun;
using model::WeightSpec;

std::string shape_text(const std::vector<int64_t>& shape) { return format("[{}]", fmt::join(shape, ", ")); }

// Reads bytes of a tensor, all of them or an error.
Result<void> read_bytes(const Checkpoint& checkpoint, const TensorRef& tensor, int64_t offset, int64_t bytes,
                        std::byte* out) {
  int64_t done = 0;
  while (done < bytes) {
    const ssize_t got = pread(checkpoint.file_descriptor(tensor.file), out + done, static_cast<size_t>(bytes - done),
                              tensor.file_offset + offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      return fail(ErrorCode::kRuntime,
                  format("{}: cannot read {} bytes of '{}' at offset {}: {}",
                         checkpoint.file_path(tensor.file).string(), bytes, tensor.name, tensor.file_offset + offset,
                         got < 0 ? std::strerror(errno) : "the file has become shorter"));
    }
    done += got;
  }
  return {};
}

// What the workers share while they load.
class Loading {
 public:
  Loading(const Checkpoint& checkpoint, const LoadOptions& options) : checkpoint_(checkpoint), options_(options) {}

  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
  void stop(Error error) {
    const std::scoped_lock lock(mutex_);
    if (!error_) error_ = std::move(error);
    stopped_ = true;
  }
  const std::optional<Error>& error() const { return error_; }

  void add_done(int64_t bytes) { done_bytes_.fetch_add(bytes, std::memory_order_relaxed); }
  // Called by worker 0 between units.
  void report() {
    if (options_.cancel != nullptr && options_.cancel->load(std::memory_order_relaxed))
      stop({ErrorCode::kInterrupted, "loading was interrupted"});
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

// Packs units of one matrix. Belongs to one worker.
class UnitPacker {
 public:
  UnitPacker(Loading& loading, const WeightSpec& spec, std::vector<std::byte>& buffer)
      : loading_(loading), spec_(spec), buffer_(buffer) {
    for (const model::TensorSpec& tensor : spec.tensors) tensors_.push_back(loading.checkpoint().find(tensor.name));
    int64_t output = 0;
    for (const RowRun& run : spec.outputs) {
      run_begin_.push_back(output);
      output += run.count;
    }
    output_count_ = output;
  }

  Result<void> pack(int node, int64_t unit) {
    const PackedMatrix& matrix = *spec_.matrix;
    // All tensors of a matrix have rows of the same length, but perhaps different types.
    const int64_t terms = matrix.terms();
    buffer_.resize(static_cast<size_t>(kernels::kUnitOutputs * terms * 4));
    const std::byte* rows[kernels::kUnitOutputs] = {};
    DType dtype = DType::kBF16;
    int64_t output = unit * kernels::kUnitOutputs;
    const int64_t end = std::min(output + kernels::kUnitOutputs, output_count_);
    size_t run = std::upper_bound(run_begin_.begin(), run_begin_.end(), output) - run_begin_.begin() - 1;
    while (output < end) {
      const RowRun& source = spec_.outputs[run];
      const int64_t skip = output - run_begin_[run];
      const int64_t count = std::min<int64_t>(source.count - skip, end - output);
      if (source.tensor >= 0) {
        const TensorRef& tensor = *tensors_[source.tensor];
        dtype = tensor.dtype;
        const int64_t row_bytes = terms * dtype_bytes(dtype);
        const int64_t slot = output - unit * kernels::kUnitOutputs;
        std::byte* const target = buffer_.data() + slot * terms * 4;
        TRY(read_bytes(loading_.checkpoint(), tensor, (source.first + skip) * row_bytes, count * row_bytes, target));
        for (int64_t i = 0; i < count; ++i) rows[slot + i] = target + i * row_bytes;
        loading_.add_done(count * row_bytes);
      }
      output += count;
      ++run;
    }
    for (int segment = 0; segment < matrix.segments(); ++segment) {
      const std::byte* segment_rows[kernels::kUnitOutputs];
      const int64_t first_term = int64_t{segment} * matrix.segment_terms(0);
      for (int i = 0; i < kernels::kUnitOutputs; ++i)
        segment_rows[i] = rows[i] == nullptr ? nullptr : rows[i] + first_term * dtype_bytes(dtype);
      kernels::pack_unit(segment_rows, dtype, matrix.segment_terms(segment), matrix.segment_stride(),
                         matrix.unit(node, segment, unit));
    }
    return {};
  }

 private:
  Loading& loading_;
  const WeightSpec& spec_;
  std::vector<std::byte>& buffer_;  // [16 rows][terms * 4 bytes]
  std::vector<const TensorRef*> tensors_;
  std::vector<int64_t> run_begin_;
  int64_t output_count_ = 0;
};

Result<void> load_vector(Loading& loading, const WeightSpec& spec) {
  spec.vector->clear();
  std::vector<std::byte> bytes;
  for (const RowRun& run : spec.outputs) {
    const TensorRef& tensor = *loading.checkpoint().find(spec.tensors[run.tensor].name);
    const int width = dtype_bytes(tensor.dtype);
    bytes.resize(static_cast<size_t>(run.count) * width);
    TRY(read_bytes(loading.checkpoint(), tensor, int64_t{run.first} * width, int64_t{run.count} * width, bytes.data()));
    loading.add_done(static_cast<int64_t>(bytes.size()));
    // A vector is a matrix of one output: the same rounding to bf16 as for all weights.
    std::vector<bf16> unit(kernels::unit_elements(round_up(run.count, kernels::kTileTerms)));
    const std::byte* rows[kernels::kUnitOutputs] = {bytes.data()};
    kernels::pack_unit(rows, tensor.dtype, run.count, round_up(run.count, kernels::kTileTerms), unit.data());
    std::vector<bf16> values(run.count);
    kernels::unpack_output(unit.data(), 0, run.count, values.data());
    for (const bf16 value : values) spec.vector->push_back(to_float(value));
  }
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
  std::vector<WeightSpec> matrices;
  Loading loading(checkpoint, options);
  std::optional<Error> vector_error;
  model.visit_weights([&](const WeightSpec& spec) {
    if (spec.matrix != nullptr) {
      matrices.push_back(spec);
    } else if (!vector_error) {
      if (auto loaded = load_vector(loading, spec); !loaded) vector_error = loaded.error();
    }
  });
  if (vector_error) return std::unexpected(*vector_error);

  // One buffer per node, handed out in the order of use.
  constexpr int64_t kAlignment = 64;
  for (int node = 0; node < team.nodes(); ++node) {
    int64_t bytes = 0;
    for (const WeightSpec& spec : matrices) bytes += round_up(spec.matrix->shard_bytes(node), kAlignment);
    TRY_ASSIGN(numa::NodeBuffer buffer, numa::NodeBuffer::allocate(bytes, node, topology));
    std::byte* next = buffer.data();
    for (const WeightSpec& spec : matrices) {
      spec.matrix->place(node, reinterpret_cast<bf16*>(next));
      next += round_up(spec.matrix->shard_bytes(node), kAlignment);
    }
    memory.push_back(std::move(buffer));
  }

  team.run([&](numa::Worker& worker) {
    std::vector<std::byte> buffer;
    for (const WeightSpec& spec : matrices) {
      UnitPacker packer(loading, spec, buffer);
      const numa::Range shard = spec.matrix->shard(worker.node).units;
      const numa::Range share = numa::split(shard.count(), worker.count_in_node, worker.rank_in_node);
      for (int64_t unit = shard.begin + share.begin; unit < shard.begin + share.end; ++unit) {
        if (loading.stopped()) return;
        if (auto packed = packer.pack(worker.node, unit); !packed) loading.stop(packed.error());
        if (worker.rank == 0) loading.report();
      }
    }
  });
  if (loading.error()) return std::unexpected(*loading.error());
  return memory;
}

}  // namespace cpuinfer::load
