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

Result<std::unique_ptr<Model>> create_model(const ModelConfig& config, const Placement& placement) {
  std::string known;
  for (const Architecture& row : architectures()) {
    if (config.architecture == row.hf_name) return row.create(config, placement);
    known += format("{}{}", known.empty() ? "" : ", ", row.hf_name);
  }
  return fail(ErrorCode::kUnsupported,
              format("architecture '{}' is not supported; cpuinfer runs {}", config.architecture, known));
}

}  // namespace cpuinfer::model
