// The goldens of tests/data/goldens (made by tests/make_goldens.py with Hugging Face Transformers), and the engine run
// over one of them.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/run/engine.h"

namespace cpuinfer::run {

struct GoldenCase {
  std::string name, covers;
  std::filesystem::path checkpoint;
  int experts = 0;  // 0: as config.json says
  int vocab = 0;
  std::vector<TokenId> tokens;
  std::vector<int> positions;           // of the reference logits
  std::vector<float> reference;         // [positions, vocab] float32 by Transformers in float32
  std::vector<TokenId> top1_reference;  // [positions]
  double kl_bf16_mean = 0;              // KL(float32 || Transformers in bfloat16), mean over positions
  double top1_bf16_agreement = 0;
};

/// All cases of cases.json.
Result<std::vector<GoldenCase>> load_golden_cases();

/// An engine for the case, loaded. `options` may set kernels, threads and chunk; the model is set here.
Result<std::unique_ptr<Engine>> open_golden(const GoldenCase& golden, EngineOptions options);

/// Logits of all tokens, [tokens, vocab].
Result<std::vector<float>> all_logits(Engine& engine, std::span<const TokenId> tokens);

}  // namespace cpuinfer::run
