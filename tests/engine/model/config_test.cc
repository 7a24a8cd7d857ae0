#include "engine/model/config.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/log.h"
#include "engine/model/generation_config.h"

namespace cpuinfer::model {
namespace {

Json json_of(std::string_view text) {
  auto json = parse_json(text, "test");
  REQUIRE_MESSAGE(json.has_value(), json.error().message);
  return *json;
}

// A small valid config with `members` (JSON text of an object) added or replaced; a null removes nothing.
Json moe_with(std::string_view members) {
  Json config = json_of(R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
      "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
      "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320, "num_experts": 8, "num_experts_per_tok": 2,
      "moe_intermediate_size": 32, "max_position_embeddings": 512})");
  const Json changes = json_of(members);
  for (const auto& [key, value] : changes.as_object()) config.set(key, value);
  return config;
}

Json dense_with(std::string_view members) {
  Json config = moe_with(R"({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"})");
  const Json changes = json_of(members);
  for (const auto& [key, value] : changes.as_object()) config.set(key, value);
  return config;
}

ModelConfig parsed(const Json& json) {
  auto config = parse_model_config(json);
  REQUIRE_MESSAGE(config.has_value(), config.error().message);
  return *config;
}

std::string error_of(const Json& json, ErrorCode code) {
  const auto config = parse_model_config(json);
  REQUIRE(!config.has_value());
  CHECK(config.error().code == code);
  return config.error().message;
}

std::string bad(const Json& json) { return error_of(json, ErrorCode::kBadInput); }
std::string unsupported(const Json& json) { return error_of(json, ErrorCode::kUnsupported); }

TEST_CASE("Qwen3-30B-A3B as published in 2025") {
  const ModelConfig config = parsed(json_of(R"({"architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false,
      "attention_dropout": 0.0, "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645,
      "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144,
      "max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe",
      "moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128,
      "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": false,
      "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
      "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
      "use_cache": true, "use_sliding_window": false, "vocab_size": 151936})"));
  CHECK(config.architecture == "Qwen3MoeForCausalLM");
  CHECK(config.layers == 48);
  CHECK(config.hidden == 2048);
  CHECK(config.heads == 32);
  CHECK(config.kv_heads == 4);
  CHECK(config.head_dim == 128);
  CHECK(config.vocab == 151936);
  CHECK(config.intermediate == 6144);
  CHECK(config.experts == 128);
  CHECK(config.experts_per_token == 8);
  CHECK(config.moe_intermediate == 768);
  CHECK(config.norm_topk_prob);
  CHECK(config.rms_eps == 1e-6f);
  CHECK(!config.attention_bias);
  CHECK(!config.tied_embeddings);
  CHECK(config.moe_layers == std::vector<bool>(48, true));
  CHECK(config.max_positions == 40960);
  CHECK(config.rope.type == RopeType::kDefault);
  CHECK(config.rope.theta == 1e6);
  CHECK(config.dtype == DType::kBF16);
}

TEST_CASE("sizes of no published model") {
  const ModelConfig config = parsed(moe_with(R"({"num_hidden_layers": 3, "num_attention_heads": 48, "hidden_size": 6144,
      "num_key_value_heads": 8, "head_dim": 128, "moe_intermediate_size": 1024, "num_experts": 128,
      "num_experts_per_tok": 12})"));
  CHECK(config.heads == 48);
  CHECK(config.experts_per_token == 12);
}

TEST_CASE("absent keys have the defaults of Transformers") {
  const ModelConfig moe = parsed(json_of(R"({"architectures": ["Qwen3MoeForCausalLM"]})"));
  CHECK(moe.layers == 24);
  CHECK(moe.hidden == 2048);
  CHECK(moe.intermediate == 6144);
  CHECK(moe.heads == 32);
  CHECK(moe.kv_heads == 4);
  CHECK(moe.head_dim == 64);  // hidden / heads
  CHECK(moe.vocab == 151936);
  CHECK(moe.experts == 128);
  CHECK(moe.experts_per_token == 8);
  CHECK(moe.moe_intermediate == 768);
  CHECK(!moe.norm_topk_prob);
  CHECK(moe.max_positions == 32768);
  CHECK(moe.rope.theta == 10000);
  const ModelConfig dense = parsed(json_of(R"({"model_type": "qwen3"})"));
  CHECK(dense.architecture == "Qwen3ForCausalLM");
  CHECK(dense.layers == 32);
  CHECK(dense.hidden == 4096);
  CHECK(dense.intermediate == 22016);
  CHECK(dense.kv_heads == 32);
  CHECK(dense.head_dim == 128);
  CHECK(dense.experts == 0);
  CHECK(dense.experts_per_token == 0);
  CHECK(dense.moe_intermediate == 0);
  CHECK(dense.moe_layers == std::vector<bool>(32, false));
}

TEST_CASE("which layers have experts") {
  const auto layers = [](std::string_view members) { return parsed(moe_with(members)).moe_layers; };
  CHECK(layers("{}") == std::vector<bool>{true, true, true, true});
  CHECK(layers(R"({"decoder_sparse_step": 2})") == std::vector<bool>{false, true, false, true});
  CHECK(layers(R"({"decoder_sparse_step": 3})") == std::vector<bool>{false, false, true, false});
  CHECK(layers(R"({"mlp_only_layers": [0, 3]})") == std::vector<bool>{false, true, true, false});
  CHECK(layers(R"({"mlp_only_layers": [1, 99], "decoder_sparse_step": 2})") ==
        std::vector<bool>{false, false, false, true});
  CHECK(layers(R"({"mlp_only_layers": null})") == std::vector<bool>{true, true, true, true});
  const ModelConfig none = parsed(moe_with(R"({"decoder_sparse_step": 9})"));
  CHECK(none.moe_layers == std::vector<bool>(4, false));
  CHECK(none.experts == 0);
  CHECK(parsed(moe_with(R"({"num_experts": 0})")).moe_layers == std::vector<bool>(4, false));
  CHECK(bad(moe_with(R"({"mlp_only_layers": 3})")) ==
        "config.json: mlp_only_layers: expected an array of layer numbers, found 3");
  CHECK(bad(moe_with(R"({"mlp_only_layers": [-1]})")) ==
        "config.json: mlp_only_layers: expected layer numbers, found -1");
  CHECK(bad(moe_with(R"({"decoder_sparse_step": 0})")) ==
        "config.json: decoder_sparse_step: expected an integer from 1 to 2147483647, found 0");
}

TEST_CASE("spellings of Transformers 5") {
  Json config = moe_with(R"({"num_local_experts": 16, "dtype": "float32",
      "rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 5000.0}, "rope_theta": 7.0})");
  auto& members = config.as_object();
  std::erase_if(members, [](const Json::Member& member) { return member.first == "num_experts"; });
  const ModelConfig parsed_config = parsed(config);
  CHECK(parsed_config.experts == 16);
  CHECK(parsed_config.dtype == DType::kF32);
  CHECK(parsed_config.rope.type == RopeType::kLinear);
  CHECK(parsed_config.rope.theta == 5000);
  CHECK(parsed_config.rope.factor == 2);
  CHECK(parsed(moe_with(R"({"torch_dtype": "float16"})")).dtype == DType::kF16);
  CHECK(parsed(moe_with(R"({"torch_dtype": "float16", "dtype": "bfloat16"})")).dtype == DType::kBF16);
  CHECK(unsupported(moe_with(R"({"torch_dtype": "float64"})")) ==
        "config.json: torch_dtype \"float64\" is not supported, only bfloat16, float16 and float32");
  CHECK(bad(moe_with(R"({"num_local_experts": 9})")) ==
        "config.json: num_experts 8 and num_local_experts 9 contradict each other");
}

TEST_CASE("other architectures stop with their name") {
  CHECK(unsupported(moe_with(R"({"architectures": ["LlamaForCausalLM"]})")) ==
        "config.json: architecture \"LlamaForCausalLM\" is not supported; cpuinfer runs Qwen3MoeForCausalLM and "
        "Qwen3ForCausalLM");
  CHECK(unsupported(json_of(R"({"model_type": "gpt2"})")) ==
        "config.json: model_type \"gpt2\" is not supported; cpuinfer runs Qwen3MoeForCausalLM and Qwen3ForCausalLM");
  CHECK(bad(moe_with(R"({"model_type": "qwen3"})")) ==
        "config.json: architectures Qwen3MoeForCausalLM and model_type \"qwen3\" contradict each other");
  CHECK(bad(json_of("{}")) == "config.json: has neither architectures nor model_type: is this a model's config.json?");
  CHECK(bad(json_of("[]")) == "config.json: expected an object, found an array");
  const std::string message = "config.json: architectures: expected an array of one string, found an array";
  CHECK(bad(moe_with(R"({"architectures": []})")) == message);
  CHECK(bad(moe_with(R"({"architectures": [1]})")) == message);
  CHECK(bad(moe_with(R"({"architectures": ["Qwen3ForCausalLM", "Qwen3ForCausalLM"]})")) == message);
  CHECK(bad(moe_with(R"({"model_type": 3})")) == "config.json: model_type: expected a string, found 3");
}

TEST_CASE("unsupported features stop with their name") {
  CHECK(
      unsupported(moe_with(R"({"quantization_config": {"quant_method": "fp8"}})")) ==
      "config.json: quantization_config (quant_method \"fp8\") is not supported; use the BF16, F16 or F32 checkpoint");
  CHECK(unsupported(moe_with(R"({"quantization_config": {}})")) ==
        "config.json: quantization_config is not supported; use the BF16, F16 or F32 checkpoint");
  CHECK(parsed(moe_with(R"({"quantization_config": null})")).layers == 4);
  CHECK(unsupported(moe_with(R"({"hidden_act": "gelu"})")) ==
        "config.json: hidden_act \"gelu\" is not supported, only silu");
  CHECK(unsupported(moe_with(R"({"dual_chunk_attention_config": {"chunk_size": 262144}})")) ==
        "config.json: dual_chunk_attention_config is not supported; use the checkpoint's own config.json (not "
        "config_1m.json)");
  CHECK(unsupported(moe_with(R"({"partial_rotary_factor": 0.5})")) ==
        "config.json: partial_rotary_factor 0.5 is not supported, only 1");
}

TEST_CASE("a sliding window counts only where it is in use") {
  const std::string in_use =
      "config.json: a sliding window (128 tokens) is in use (use_sliding_window is true); "
      "cpuinfer has full attention only";
  CHECK(unsupported(moe_with(R"({"use_sliding_window": true, "sliding_window": 128})")) == in_use);
  CHECK(unsupported(dense_with(R"({"use_sliding_window": true, "sliding_window": 128, "max_window_layers": 3})")) ==
        in_use);
  CHECK(unsupported(moe_with(R"({"use_sliding_window": true})")).find("(4096 tokens)") != std::string::npos);
  CHECK(parsed(dense_with(R"({"use_sliding_window": true, "sliding_window": 128, "max_window_layers": 4})")).layers ==
        4);
  CHECK(parsed(moe_with(R"({"use_sliding_window": true, "sliding_window": null})")).layers == 4);
  CHECK(parsed(moe_with(R"({"use_sliding_window": false, "sliding_window": 128})")).layers == 4);
  const char* full = R"({"layer_types": ["full_attention", "full_attention", "full_attention", "full_attention"],
      "use_sliding_window": true, "sliding_window": 128, "max_window_layers": 0})";
  CHECK(parsed(dense_with(full)).layers == 4);
  CHECK(unsupported(moe_with(full)) == in_use);  // there Transformers ignores layer_types
  CHECK(unsupported(dense_with(
            R"({"layer_types": ["full_attention", "full_attention", "full_attention", "sliding_attention"]})")) ==
        "config.json: layer_types[3] \"sliding_attention\" is not supported, only full_attention");
  CHECK(bad(dense_with(R"({"layer_types": ["full_attention"]})")) ==
        "config.json: layer_types has 1 entries, num_hidden_layers is 4");
  CHECK(bad(dense_with(R"({"layer_types": "full_attention"})")) ==
        "config.json: layer_types: expected an array of strings, found \"full_attention\"");
  CHECK(bad(dense_with(R"({"layer_types": [1, 2, 3, 4]})")) ==
        "config.json: layer_types: expected an array of strings, found 1");
}

TEST_CASE("numbers out of range name key, range and value") {
  CHECK(bad(moe_with(R"({"num_hidden_layers": 0})")) ==
        "config.json: num_hidden_layers: expected an integer from 1 to 1024, found 0");
  CHECK(bad(moe_with(R"({"hidden_size": -64})")) ==
        "config.json: hidden_size: expected an integer from 1 to 262144, found -64");
  CHECK(bad(moe_with(R"({"hidden_size": 64.5})")).ends_with("found 64.5"));
  CHECK(bad(moe_with(R"({"hidden_size": null})")).ends_with("found null"));
  CHECK(bad(moe_with(R"({"hidden_size": "64"})")).ends_with("found \"64\""));
  CHECK(bad(moe_with(R"({"hidden_size": {}})")).ends_with("found an object"));
  CHECK(bad(moe_with(R"({"vocab_size": 9223372036854775808})"))
            .starts_with("config.json: vocab_size: expected an integer from 1 to 16777216, found 9.22"));
  CHECK(bad(moe_with(R"({"intermediate_size": 1000000})")).starts_with("config.json: intermediate_size: "));
  CHECK(bad(moe_with(R"({"moe_intermediate_size": 0})")).starts_with("config.json: moe_intermediate_size: "));
  CHECK(bad(moe_with(R"({"num_experts": 4097})")).starts_with("config.json: num_experts: "));
  CHECK(bad(moe_with(R"({"num_experts_per_tok": 0})")).starts_with("config.json: num_experts_per_tok: "));
  CHECK(bad(moe_with(R"({"num_experts_per_tok": 9})")) == "config.json: num_experts_per_tok 9 is above num_experts 8");
  CHECK(bad(moe_with(R"({"num_attention_heads": 5})")) ==
        "config.json: num_attention_heads 5 is not a multiple of num_key_value_heads 2");
  CHECK(bad(moe_with(R"({"head_dim": 15})")) ==
        "config.json: head_dim: expected an even integer from 2 to 1024, found 15");
  CHECK(
      bad(moe_with(R"({"head_dim": null, "hidden_size": 20})")) ==
      "config.json: head_dim: expected an even integer from 2 to 1024, found 5 (hidden_size / num_attention_heads, as "
      "head_dim is absent)");
  CHECK(bad(moe_with(R"({"num_attention_heads": 4096, "head_dim": 1024})")) ==
        "config.json: num_attention_heads 4096 x head_dim 1024 is above 1048576");
  CHECK(bad(moe_with(R"({"rms_norm_eps": 0})")) ==
        "config.json: rms_norm_eps: expected a number from 1e-12 to 1, found 0");
  CHECK(bad(moe_with(R"({"rms_norm_eps": 1e300})")).starts_with("config.json: rms_norm_eps: "));
  CHECK(bad(moe_with(R"({"max_position_embeddings": 0})")).starts_with("config.json: max_position_embeddings: "));
  CHECK(bad(moe_with(R"({"tie_word_embeddings": 1})")) ==
        "config.json: tie_word_embeddings: expected true or false, found 1");
  const Json long_text = moe_with(R"({"attention_bias": ")" + std::string(500, 'x') + "\"}");
  CHECK(bad(long_text) ==
        "config.json: attention_bias: expected true or false, found \"" + std::string(100, 'x') + "...\"");
}

TEST_CASE("rope parameters") {
  const auto rope = [](std::string_view members) { return parsed(moe_with(members)).rope; };
  const RopeConfig yarn = rope(R"({"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4}})");
  CHECK(yarn.type == RopeType::kYarn);
  CHECK(yarn.original_max_positions == 512);
  CHECK(yarn.beta_fast == 32);
  CHECK(yarn.beta_slow == 1);
  CHECK(yarn.truncate);
  CHECK(rope(R"({"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 128}})")
            .original_max_positions == 128);
  CHECK(rope(R"({"original_max_position_embeddings": 64,
                 "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 128}})")
            .original_max_positions == 64);
  CHECK(rope(R"({"rope_scaling": {"type": "yarn", "factor": null, "original_max_position_embeddings": 128}})").factor ==
        4);
  CHECK(rope(R"({"rope_scaling": {}, "rope_theta": 77})").theta == 77);
  CHECK(!rope(R"({"rope_scaling": {"type": "yarn", "factor": 2, "truncate": null}})").truncate);

  const auto inside = [](std::string_view members) {
    return moe_with(R"({"rope_scaling": {"rope_type": )" + std::string(members) + "}}");
  };
  CHECK(
      unsupported(inside(R"("longrope", "factor": 4)")) ==
      "config.json: rope_scaling: rope_type \"longrope\" is not supported; cpuinfer computes default, linear, dynamic "
      "and yarn");
  CHECK(unsupported(moe_with(R"({"rope_parameters": {"type": "llama3"}})"))
            .starts_with("config.json: rope_parameters: rope_type \"llama3\" is not supported"));
  CHECK(bad(inside("7")) == "config.json: rope_scaling: rope_type: expected a string, found 7");
  CHECK(bad(moe_with(R"({"rope_scaling": "yarn"})")) ==
        "config.json: rope_scaling: expected an object, found \"yarn\"");
  CHECK(bad(inside(R"("linear")")) ==
        "config.json: rope_scaling: factor: expected a number (rope_type linear and "
        "dynamic need it), found nothing");
  CHECK(bad(inside(R"("yarn")")) ==
        "config.json: rope_scaling: factor: expected a number (rope_type yarn needs it), found nothing");
  CHECK(bad(inside(R"("dynamic", "factor": 0.5)")) ==
        "config.json: rope_scaling: factor: expected a number from 1 to 1000000, found 0.5");
  CHECK(
      bad(inside(R"("yarn", "factor": null, "original_max_position_embeddings": 1024)")) ==
      "config.json: rope_scaling: factor: max_position_embeddings 512 is below original_max_position_embeddings 1024, "
      "so the factor would be below 1");
  CHECK(bad(inside(R"("yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2)")) ==
        "config.json: rope_scaling: beta_fast 1 must not be below beta_slow 2");
  CHECK(bad(inside(R"("yarn", "factor": 2, "attention_factor": 0)"))
            .starts_with("config.json: rope_scaling: attention_factor: "));
  CHECK(bad(inside(R"("yarn", "factor": 2, "truncate": 1)")) ==
        "config.json: rope_scaling: truncate: expected true or false, found 1");
  CHECK(bad(inside(R"("default", "rope_theta": 1)")).starts_with("config.json: rope_scaling: rope_theta: "));
  CHECK(unsupported(inside(R"("default", "partial_rotary_factor": 0.25)")) ==
        "config.json: rope_scaling: partial_rotary_factor 0.25 is not supported, only 1");
  CHECK(unsupported(inside(R"("default", "mrope_section": [1])")) ==
        "config.json: rope_scaling: mrope_section (multimodal rope) is not supported");
  CHECK(unsupported(moe_with(R"({"rope_parameters": {"full_attention": {"rope_type": "default"}}})")) ==
        "config.json: rope_parameters: parameters for each layer type are not supported");
  CHECK(bad(moe_with(R"({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2}})")) ==
        "config.json: rope_scaling: rope_type dynamic needs a head_dim above 2, found 2");
}

TEST_CASE("rope parameters without effect are named") {
  std::vector<std::string> lines;
  set_log_sink([&](LogLevel, std::string_view line) { lines.emplace_back(line); });
  parsed(moe_with(R"({"rope_scaling": {"type": "yarn", "factor": 2, "attention_facter": 3}})"));
  parsed(moe_with(R"({"rope_scaling": {"type": "default", "factor": 2}})"));
  parsed(moe_with(R"({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}})"));
  set_log_sink([](LogLevel, std::string_view) {});
  REQUIRE(lines.size() == 3);
  CHECK(lines[0] == "config.json: rope parameter \"attention_facter\" is not known and ignored");
  CHECK(lines[1] == "config.json: rope parameter factor is ignored, as rope_type is default");
  CHECK(lines[2] == "config.json: rope_scaling and rope_parameters differ; rope_scaling is used, as in Transformers");
}

TEST_CASE("generation defaults") {
  const auto config = parse_generation_config(json_of(R"({"bos_token_id": 151643, "pad_token_id": 151643,
      "do_sample": true, "eos_token_id": [151645, 151643], "temperature": 0.6, "top_k": 20, "top_p": 0.95,
      "repetition_penalty": 1.05, "max_new_tokens": 2048, "min_p": null, "transformers_version": "4.51.0"})"));
  REQUIRE(config.has_value());
  CHECK(config->do_sample == true);
  CHECK(config->temperature == 0.6f);
  CHECK(config->top_k == 20);
  CHECK(config->top_p == 0.95f);
  CHECK(!config->min_p.has_value());
  CHECK(config->repetition_penalty == 1.05f);
  CHECK(config->max_new_tokens == 2048);
  CHECK(config->eos_token_ids == std::vector<TokenId>{151645, 151643});

  const auto empty = parse_generation_config(json_of("{}"));
  REQUIRE(empty.has_value());
  CHECK(!empty->temperature.has_value());
  CHECK(empty->eos_token_ids.empty());
  CHECK(parse_generation_config(json_of(R"({"eos_token_id": 5})"))->eos_token_ids == std::vector<TokenId>{5});
  // Keys that nobody uses are no reason to refuse a model.
  CHECK(parse_generation_config(json_of(R"({"pad_token_id": -1, "bos_token_id": [], "top_k": 3})"))->top_k == 3);
}

TEST_CASE("generation defaults out of range") {
  const auto message = [](std::string_view text) {
    const auto config = parse_generation_config(json_of(text));
    REQUIRE(!config.has_value());
    CHECK(config.error().code == ErrorCode::kBadInput);
    return config.error().message;
  };
  const std::string where = "generation_config.json: ";
  CHECK(message("3") == where + "expected an object, found 3");
  CHECK(message(R"({"temperature": -1})") == where + "temperature: expected a number from 0 to 100, found -1");
  CHECK(message(R"({"top_k": 1.5})") == where + "top_k: expected an integer from 0 to 2147483647, found 1.5");
  CHECK(message(R"({"top_p": 1.1})") == where + "top_p: expected a number from 0 to 1, found 1.1");
  CHECK(message(R"({"top_p": 0})") == where + "top_p: expected a number over 0 and at most 1, found 0");
  CHECK(message(R"({"top_p": 1e-60})") == where + "top_p: expected a number over 0 and at most 1, found 1e-60");
  CHECK(message(R"({"min_p": "x"})") == where + "min_p: expected a number from 0 to 1, found \"x\"");
  CHECK(message(R"({"repetition_penalty": 0})") ==
        where + "repetition_penalty: expected a number from 0.001 to 1000, found 0");
  CHECK(message(R"({"max_new_tokens": 0})").starts_with(where + "max_new_tokens: "));
  CHECK(message(R"({"do_sample": "yes"})") == where + "do_sample: expected true or false, found \"yes\"");
  CHECK(message(R"({"eos_token_id": -1})").starts_with(where + "eos_token_id: "));
  CHECK(message(R"({"eos_token_id": [1, 2147483648]})") ==
        where + "eos_token_id: expected integers from 0 to 2147483647, found 2147483648");
}

}  // namespace
}  // namespace cpuinfer::model
