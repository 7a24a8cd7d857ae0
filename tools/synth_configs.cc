#include "tools/synth_configs.h"

#include <cstdint>

#include "base/format.h"
#include "tools/option_values.h"

namespace cpuinfer::tools {
namespace {

/// One published config.json, by its numbers. experts == 0: Qwen3ForCausalLM.
struct Sizes {
  const char* name;
  int layers, hidden, heads, kv_heads, head_dim, intermediate, experts, experts_per_token, moe_intermediate;
  int64_t max_positions;
  double rope_theta;
  bool tied;
  int vocab;
};

constexpr int kVocab = 151936;

// From the config.json files of the Qwen organisation.
constexpr Sizes kSizes[] = {
    // name                     layers hidden heads kv  dim  inter  experts top  moe   positions  theta  tied vocab
    {"qwen3-0.6b", 28, 1024, 16, 8, 128, 3072, 0, 0, 0, 40960, 1e6, true, kVocab},
    {"qwen3-1.7b", 28, 2048, 16, 8, 128, 6144, 0, 0, 0, 40960, 1e6, true, kVocab},
    {"qwen3-4b", 36, 2560, 32, 8, 128, 9728, 0, 0, 0, 40960, 1e6, true, kVocab},
    {"qwen3-8b", 36, 4096, 32, 8, 128, 12288, 0, 0, 0, 40960, 1e6, false, kVocab},
    {"qwen3-14b", 40, 5120, 40, 8, 128, 17408, 0, 0, 0, 40960, 1e6, false, kVocab},
    {"qwen3-32b", 64, 5120, 64, 8, 128, 25600, 0, 0, 0, 40960, 1e6, false, kVocab},
    {"qwen3-30b-a3b", 48, 2048, 32, 4, 128, 6144, 128, 8, 768, 40960, 1e6, false, kVocab},
    {"qwen3-30b-a3b-2507", 48, 2048, 32, 4, 128, 6144, 128, 8, 768, 262144, 1e7, false, kVocab},
    {"qwen3-235b-a22b", 94, 4096, 64, 4, 128, 12288, 128, 8, 1536, 40960, 1e6, false, kVocab},
    {"qwen3-coder-480b-a35b", 62, 6144, 96, 8, 128, 8192, 160, 8, 2560, 262144, 1e7, false, kVocab},
    // For tests: every part of a mixture of experts, in a megabyte.
    {"tiny", 2, 64, 4, 2, 16, 96, 8, 2, 32, 4096, 1e4, false, 1536},
};

}  // namespace

std::vector<std::string> config_names() {
  std::vector<std::string> names;
  for (const Sizes& sizes : kSizes) names.push_back(sizes.name);
  return names;
}

Result<Json> named_config(std::string_view name) {
  const Sizes* found = nullptr;
  for (const Sizes& sizes : kSizes)
    if (sizes.name == name) found = &sizes;
  if (found == nullptr) {
    const std::vector<std::string> names = config_names();
    const std::string near = nearest_name(name, names);
    return fail(ErrorCode::kUsage,
                format("unknown model '{}'{}; known are {}", name,
                       near.empty() ? "" : format("; did you mean '{}'?", near), fmt::join(names, ", ")));
  }
  const Sizes& s = *found;
  const bool moe = s.experts > 0;
  Json json;
  Json architectures;
  architectures.push_back(moe ? "Qwen3MoeForCausalLM" : "Qwen3ForCausalLM");
  json.set("architectures", std::move(architectures));
  json.set("model_type", moe ? "qwen3_moe" : "qwen3");
  json.set("num_hidden_layers", s.layers);
  json.set("hidden_size", s.hidden);
  json.set("num_attention_heads", s.heads);
  json.set("num_key_value_heads", s.kv_heads);
  json.set("head_dim", s.head_dim);
  json.set("intermediate_size", s.intermediate);
  if (moe) {
    json.set("num_experts", s.experts);
    json.set("num_experts_per_tok", s.experts_per_token);
    json.set("moe_intermediate_size", s.moe_intermediate);
    json.set("norm_topk_prob", true);
    json.set("decoder_sparse_step", 1);
    json.set("mlp_only_layers", Json(Json::Array{}));
  }
  json.set("vocab_size", s.vocab);
  json.set("max_position_embeddings", s.max_positions);
  json.set("rope_theta", s.rope_theta);
  json.set("rope_scaling", nullptr);
  json.set("rms_norm_eps", 1e-6);
  json.set("hidden_act", "silu");
  json.set("attention_bias", false);
  json.set("attention_dropout", 0.0);
  json.set("tie_word_embeddings", s.tied);
  json.set("use_sliding_window", false);
  json.set("sliding_window", nullptr);
  if (s.vocab == kVocab) {
    json.set("bos_token_id", 151643);
    json.set("eos_token_id", 151645);
  }
  return json;
}

}  // namespace cpuinfer::tools
