// THE list of model families. A new one is a file and a row here.
#include "base/format.h"
#include "engine/model/model.h"
#include "engine/model/qwen3.h"

namespace cpuinfer::model {
namespace {

constexpr Architecture kArchitectures[] = {
    {"Qwen3MoeForCausalLM", create_qwen3},
    {"Qwen3ForCausalLM", create_qwen3},
};

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

Result<std::unique_ptr<Model>> create_model(const ModelConfig& config, int nodes) {
  std::string known;
  for (const Architecture& row : architectures()) {
    if (config.architecture == row.hf_name) return row.create(config, nodes);
    known += format("{}{}", known.empty() ? "" : ", ", row.hf_name);
  }
  return fail(ErrorCode::kUnsupported,
              format("architecture '{}' is not supported; cpuinfer runs {}", config.architecture, known));
}

int64_t weight_bytes(Model& model, int node) {
  int64_t bytes = 0;
  model.visit_weights([&](const WeightSpec& spec) {
    if (spec.matrix != nullptr) bytes += spec.matrix->shard_bytes(node);
    if (spec.vector != nullptr && node == 0)
      for (const RowRun& run : spec.outputs) bytes += run.count * static_cast<int64_t>(sizeof(float));
  });
  return bytes;
}

}  // namespace cpuinfer::model
