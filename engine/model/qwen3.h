// Qwen3, dense and mixture of experts.
#pragma once

#include <memory>

#include "engine/model/model.h"

namespace cpuinfer::model {

/// Qwen3ForCausalLM and Qwen3MoeForCausalLM (Qwen3 Technical Report, arXiv 2505.09388).
std::unique_ptr<Model> create_qwen3(const ModelConfig& config, const Placement& placement);

}  // namespace cpuinfer::model
