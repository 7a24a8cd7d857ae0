// Small engines without a checkpoint.
#pragma once

#include <doctest/doctest.h>

#include <memory>
#include <string>

#include "base/format.h"
#include "base/json.h"
#include "engine/run/engine.h"

namespace cpuinfer::run {

/// Simulated nodes to compare: as many as heads, fewer, more, and numbers that do not divide. Sanitizers make engines
/// with more threads than CPUs too slow for all of them.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr int kSimulatedNodes[] = {3};
#else
inline constexpr int kSimulatedNodes[] = {2, 3, 4, 6, 8};
#endif

/// One layer of a mixture of experts with one narrow kv head (or 2, or 4), so that long contexts are cheap: 128 bytes
/// per token and head.
inline SyntheticModel small_model(int64_t positions, int layers = 1, int kv_heads = 1) {
  const std::string text = format(
      R"({{"architectures":["Qwen3MoeForCausalLM"],"hidden_size":64,"num_hidden_layers":{},"num_attention_heads":4,
      "num_key_value_heads":{},"head_dim":32,"vocab_size":199,"intermediate_size":96,"num_experts":16,
      "num_experts_per_tok":3,"moe_intermediate_size":32,"norm_topk_prob":true,"rms_norm_eps":1e-6,
      "tie_word_embeddings":false,"max_position_embeddings":{},"rope_theta":10000.0}})",
      layers, kv_heads, positions);
  auto json = parse_json(text, "config");
  REQUIRE(json);
  return {"small", *json, 1};
}

inline std::unique_ptr<Engine> loaded_engine(const EngineOptions& options) {
  auto engine = Engine::prepare(options);
  REQUIRE_MESSAGE(engine, (engine ? "" : engine.error().message));
  const auto done = (*engine)->load();
  REQUIRE_MESSAGE(done, (done ? "" : done.error().message));
  return std::move(*engine);
}

}  // namespace cpuinfer::run
