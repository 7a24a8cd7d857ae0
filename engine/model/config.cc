#include "engine/model/config.h"

#include <algorithm>
#include <string_view>

#include "base/format.h"
#include "base/text.h"
#include "engine/model/config_reader.h"
#include "engine/model/config_rope.h"

namespace cpuinfer::model {
namespace {

// Limits of sizes: far above any model, and low enough that bytes of all weights, and of a cache of kMaxPositions, fit
// int64_t: 2^10 layers x 2^12 experts x 3 matrices x 2^18 x 2^18 x 2 bytes < 2^61.
constexpr int64_t kMaxLayers = 1 << 10;
constexpr int64_t kMaxWidth = 1 << 18;
constexpr int64_t kMaxHeads = 1 << 12;
constexpr int64_t kMaxHeadDim = 1 << 10;
constexpr int64_t kMaxHeadWidth = 1 << 20;  // heads * head_dim
constexpr int64_t kMaxVocab = 1 << 24;
constexpr int64_t kMaxExperts = 1 << 12;

// What absent keys mean: the class attributes of Qwen3MoeConfig and Qwen3Config.
struct Family {
  std::string_view architecture, model_type;
  bool has_experts;
  int64_t layers, hidden, intermediate, heads, kv_heads;
  int64_t head_dim;  // 0: hidden / heads
};
constexpr Family kFamilies[] = {{"Qwen3MoeForCausalLM", "qwen3_moe", true, 24, 2048, 6144, 32, 4, 0},
                                {"Qwen3ForCausalLM", "qwen3", false, 32, 4096, 22016, 32, 32, 128}};
constexpr const char* kSupported = "cpuinfer runs Qwen3MoeForCausalLM and Qwen3ForCausalLM";

// architectures decides; a config without it (a bare Transformers config) is known by its model_type.
Result<const Family*> find_family(const ConfigReader& config) {
  TRY_ASSIGN(const std::optional<std::string> model_type, config.optional_string("model_type"));
  const Json* architectures = config.find_set("architectures");
  if (architectures == nullptr) {
    for (const Family& family : kFamilies)
      if (model_type == family.model_type) return &family;
    if (!model_type) return config.bad("has neither architectures nor model_type: is this a model's config.json?");
    return config.unsupported(
        format("model_type {} is not supported; {}", shown(config.find("model_type")), kSupported));
  }
  if (!architectures->is_array() || architectures->as_array().size() != 1 ||
      !architectures->as_array().front().is_string())
    return config.bad("architectures", "an array of one string", architectures);
  const Json& name = architectures->as_array().front();
  for (const Family& family : kFamilies) {
    if (name.as_string() != family.architecture) continue;
    if (model_type && model_type != family.model_type)
      return config.bad(format("architectures {} and model_type {} contradict each other", family.architecture,
                               shown(config.find("model_type"))));
    return &family;
  }
  return config.unsupported(format("architecture {} is not supported; {}", shown(&name), kSupported));
}

Result<void> check_no_quantization(const ConfigReader& config) {
  const Json* quantization = config.find_set("quantization_config");
  if (quantization == nullptr) return {};
  const Json* method = quantization->find("quant_method");
  return config.unsupported(format("quantization_config{} is not supported; use the BF16, F16 or F32 checkpoint",
                                   method ? format(" (quant_method {})", shown(method)) : ""));
}

// Reads like the model: a window that is configured but reaches no layer is fine.
Result<void> check_no_sliding_window(const ConfigReader& config, const Family& family, int layers) {
  if (const Json* types = config.find_set("layer_types"); types != nullptr) {
    if (!types->is_array()) return config.bad("layer_types", "an array of strings", types);
    if (static_cast<int64_t>(types->as_array().size()) != layers)
      return config.bad(
          format("layer_types has {} entries, num_hidden_layers is {}", types->as_array().size(), layers));
    for (size_t i = 0; i < types->as_array().size(); ++i) {
      const Json& type = types->as_array()[i];
      if (!type.is_string()) return config.bad("layer_types", "an array of strings", &type);
      if (type.as_string() != "full_attention")
        return config.unsupported(format("layer_types[{}] {} is not supported, only full_attention", i, shown(&type)));
    }
  }
  TRY_ASSIGN(const bool used, config.boolean("use_sliding_window", false));
  TRY_ASSIGN(const std::optional<int64_t> window, config.optional_integer("sliding_window", 0, kMaxPositions));
  TRY_ASSIGN(const int64_t first_layer, config.integer("max_window_layers", 28, 0, INT32_MAX));
  const bool configured = used && (window || config.find("sliding_window") == nullptr);
  const bool explicit_types = config.find_set("layer_types") != nullptr;
  // In dense models layer_types decides, else layers from max_window_layers on have it; with experts, all layers.
  const bool reaches_layers = family.has_experts || (!explicit_types && first_layer < layers);
  if (configured && reaches_layers)
    return config.unsupported(
        format("a sliding window ({} tokens) is in use (use_sliding_window is true); cpuinfer "
               "has full attention only",
               window.value_or(4096)));
  return {};
}

Result<void> check_features(const ConfigReader& config) {
  TRY(check_no_quantization(config));
  TRY_ASSIGN(const std::optional<std::string> activation, config.optional_string("hidden_act"));
  if (activation && *activation != "silu")
    return config.unsupported(format("hidden_act {} is not supported, only silu", shown(config.find("hidden_act"))));
  if (config.find_set("dual_chunk_attention_config") != nullptr)
    return config.unsupported(
        "dual_chunk_attention_config is not supported; use the checkpoint's own config.json "
        "(not config_1m.json)");
  return {};
}

Result<DType> parse_dtype(const ConfigReader& config) {
  for (const char* key : {"dtype", "torch_dtype"}) {
    TRY_ASSIGN(const std::optional<std::string> name, config.optional_string(key));
    if (!name) continue;
    if (*name == "bfloat16") return DType::kBF16;
    if (*name == "float16") return DType::kF16;
    if (*name == "float32") return DType::kF32;
    return config.unsupported(
        format("{} {} is not supported, only bfloat16, float16 and float32", key, shown(config.find(key))));
  }
  return DType::kBF16;
}

Result<void> parse_attention(const ConfigReader& config, const Family& family, ModelConfig& out) {
  TRY_ASSIGN(out.heads, config.integer("num_attention_heads", family.heads, 1, kMaxHeads));
  TRY_ASSIGN(out.kv_heads, config.integer("num_key_value_heads", family.kv_heads, 1, kMaxHeads));
  if (out.heads % out.kv_heads != 0)
    return config.bad(
        format("num_attention_heads {} is not a multiple of num_key_value_heads {}", out.heads, out.kv_heads));
  TRY_ASSIGN(const std::optional<int64_t> head_dim, config.optional_integer("head_dim", 2, kMaxHeadDim));
  const bool absent = config.find("head_dim") == nullptr;
  out.head_dim = static_cast<int>(head_dim                        ? *head_dim
                                  : absent && family.head_dim > 0 ? family.head_dim
                                                                  : int64_t{out.hidden} / out.heads);
  if (out.head_dim < 2 || out.head_dim % 2 != 0 || out.head_dim > kMaxHeadDim)
    return config.bad(format("head_dim: expected an even integer from 2 to {}, found {}{}", kMaxHeadDim, out.head_dim,
                             head_dim ? "" : " (hidden_size / num_attention_heads, as head_dim is absent)"));
  if (int64_t{out.heads} * out.head_dim > kMaxHeadWidth)
    return config.bad(
        format("num_attention_heads {} x head_dim {} is above {}", out.heads, out.head_dim, kMaxHeadWidth));
  TRY_ASSIGN(out.attention_bias, config.boolean("attention_bias", false));
  return {};
}

// Transformers 5 writes num_experts as num_local_experts and reads both.
Result<int64_t> parse_expert_count(const ConfigReader& config) {
  TRY_ASSIGN(const int64_t experts, config.integer("num_experts", -1, 0, kMaxExperts));
  TRY_ASSIGN(const int64_t local_experts, config.integer("num_local_experts", -1, 0, kMaxExperts));
  if (experts >= 0 && local_experts >= 0 && experts != local_experts)
    return config.bad(format("num_experts {} and num_local_experts {} contradict each other", experts, local_experts));
  if (experts >= 0) return experts;
  return local_experts >= 0 ? local_experts : 128;
}

// Layer i has experts unless mlp_only_layers names it or (i + 1) % decoder_sparse_step != 0.
Result<void> parse_experts(const ConfigReader& config, ModelConfig& out) {
  TRY_ASSIGN(const int64_t experts, parse_expert_count(config));
  TRY_ASSIGN(const int64_t step, config.integer("decoder_sparse_step", 1, 1, INT32_MAX));
  if (experts > 0)
    for (int i = 0; i < out.layers; ++i) out.moe_layers[static_cast<size_t>(i)] = (i + 1) % step == 0;
  if (const Json* dense = config.find_set("mlp_only_layers"); dense != nullptr) {
    if (!dense->is_array()) return config.bad("mlp_only_layers", "an array of layer numbers", dense);
    for (const Json& layer : dense->as_array()) {
      if (!layer.is_int() || layer.as_int() < 0) return config.bad("mlp_only_layers", "layer numbers", &layer);
      // Numbers beyond the last layer mean nothing: the config of a model that was cut to fewer layers has some.
      if (layer.as_int() < out.layers) out.moe_layers[static_cast<size_t>(layer.as_int())] = false;
    }
  }
  if (std::find(out.moe_layers.begin(), out.moe_layers.end(), true) == out.moe_layers.end()) return {};
  out.experts = static_cast<int>(experts);
  TRY_ASSIGN(out.experts_per_token, config.integer("num_experts_per_tok", 8, 1, kMaxExperts));
  if (out.experts_per_token > out.experts)
    return config.bad(format("num_experts_per_tok {} is above num_experts {}", out.experts_per_token, out.experts));
  TRY_ASSIGN(out.moe_intermediate, config.integer("moe_intermediate_size", 768, 1, kMaxWidth));
  TRY_ASSIGN(out.norm_topk_prob, config.boolean("norm_topk_prob", false));
  return {};
}

}  // namespace

Result<ModelConfig> parse_model_config(const Json& json) {
  const ConfigReader config(json, "config.json");
  if (!json.is_object()) return config.bad(format("expected an object, found {}", shown(&json)));
  TRY_ASSIGN(const Family* family, find_family(config));
  TRY(check_features(config));

  ModelConfig out;
  out.architecture = family->architecture;
  TRY_ASSIGN(out.layers, config.integer("num_hidden_layers", family->layers, 1, kMaxLayers));
  TRY(check_no_sliding_window(config, *family, out.layers));
  TRY_ASSIGN(out.hidden, config.integer("hidden_size", family->hidden, 1, kMaxWidth));
  TRY_ASSIGN(out.intermediate, config.integer("intermediate_size", family->intermediate, 1, kMaxWidth));
  TRY_ASSIGN(out.vocab, config.integer("vocab_size", 151936, 1, kMaxVocab));
  TRY_ASSIGN(out.rms_eps, config.number("rms_norm_eps", 1e-6, 1e-12, 1));
  TRY_ASSIGN(out.tied_embeddings, config.boolean("tie_word_embeddings", false));
  TRY_ASSIGN(out.max_positions, config.integer("max_position_embeddings", 32768, 1, kMaxPositions));
  TRY_ASSIGN(out.dtype, parse_dtype(config));
  TRY(parse_attention(config, *family, out));
  out.moe_layers.assign(static_cast<size_t>(out.layers), false);
  if (family->has_experts) TRY(parse_experts(config, out));
  TRY_ASSIGN(out.rope, parse_rope_config(config, out.head_dim, out.max_positions));
  return out;
}

}  // namespace cpuinfer::model
