// ModelConfig: the numbers of an architecture, validated.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "base/types.h"
#include "engine/model/rope.h"

namespace cpuinfer::model {

/// A Qwen3 decoder (dense or mixture of experts). Every number is within its range: positive, products of two
/// dimensions fit int64_t, heads % kv_heads == 0, head_dim even, 1 <= experts_per_token <= experts.
struct ModelConfig {
  std::string architecture;  ///< "Qwen3MoeForCausalLM" or "Qwen3ForCausalLM"
  int layers = 0;
  int hidden = 0;  ///< width of the residual stream
  int heads = 0;   ///< query heads
  int kv_heads = 0;
  int head_dim = 0;  ///< independent of hidden / heads
  int vocab = 0;
  int intermediate = 0;  ///< width of dense MLPs
  int experts = 0;       ///< 0 when no layer has experts, and so the next two
  int experts_per_token = 0;
  int moe_intermediate = 0;  ///< width of one expert
  bool norm_topk_prob = false;
  float rms_eps = 0;
  bool attention_bias = false;   ///< biases on q, k, v and o projections
  bool tied_embeddings = false;  ///< lm_head is the embedding matrix
  std::vector<bool> moe_layers;  ///< [layers]: true = experts, false = dense MLP
  int64_t max_positions = 0;     ///< max_position_embeddings: the length the model is configured for
  RopeConfig rope;
  /// `--rope-scaling auto`: `rope` is for sequences within the native positions, sequence_rope() for any.
  std::optional<RopeByLength> rope_by_length = {};
  DType dtype = DType::kBF16;  ///< as the config says; each tensor of the checkpoint has its own
};

/// Reads the config.json of Qwen3MoeForCausalLM or Qwen3ForCausalLM in its old and new spelling; absent keys have
/// the defaults of Transformers 5.23 (models/qwen3_moe, models/qwen3: configuration_*.py).
/// Errors: kBadInput names the key, its value and the range; kUnsupported names what cpuinfer does not do.
Result<ModelConfig> parse_model_config(const Json& config);

}  // namespace cpuinfer::model
