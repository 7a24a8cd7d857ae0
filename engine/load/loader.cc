#include "engine/load/loader.h"

#include <algorithm>
#include <optional>
#include <set>
#include <string>

#include "base/format.h"
#include "base/log.h"
#include "engine/load/checkpoint_weights.h"

namespace cpuinfer::load {
namespace {

using checkpoint::Checkpoint;
using checkpoint::TensorRef;
using model::WeightSpec;

std::string shape_text(const std::vector<int64_t>& shape) { return format("[{}]", fmt::join(shape, ", ")); }

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

Result<WeightMemory> allocate_weights(model::Model& model, int nodes, const numa::Topology& topology,
                                      const std::function<bool(const WeightSpec&)>& wanted) {
  // One buffer per node, handed out in the order of use. At pages, as O_DIRECT wants them; almost all matrices are
  // whole pages anyway.
  constexpr int64_t kAlignment = 4096;
  const auto bytes_on = [&](const WeightSpec& spec, int node) {
    if (wanted && !wanted(spec)) return int64_t{0};
    return round_up(spec.matrix != nullptr ? spec.matrix->shard_bytes(node) : spec.vector->bytes(), kAlignment);
  };
  WeightMemory memory;
  for (int node = 0; node < nodes; ++node) {
    int64_t bytes = 0;
    model.visit_weights([&](const WeightSpec& spec) { bytes += bytes_on(spec, node); });
    TRY_ASSIGN(numa::NodeBuffer buffer, numa::NodeBuffer::allocate(bytes, node, topology, numa::Pages::kLargest));
    std::byte* next = buffer.data();
    model.visit_weights([&](const WeightSpec& spec) {
      if (wanted && !wanted(spec)) return;
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
  std::vector<WeightSpec> specs;
  model.visit_weights([&](const WeightSpec& spec) { specs.push_back(spec); });
  CheckpointWeights weights(model, checkpoint, team, topology, options);
  TRY(weights.read(specs));
  if (options.statistics != nullptr) {
    *options.statistics = weights.statistics();
    options.statistics->seconds = seconds_since(start);
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
