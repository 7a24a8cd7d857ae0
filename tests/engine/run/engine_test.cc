// What the engine says yes and no to. The arithmetic is tested by golden_test and invariance_test.
#include "engine/run/engine.h"

#include <doctest/doctest.h>

#include "engine/run/generation.h"
#include "tests/engine/run/golden_cases.h"
#include "tests/engine/run/random_checkpoint.h"

using namespace cpuinfer;
using namespace cpuinfer::run;

namespace {

const std::filesystem::path kGoldens = std::filesystem::path(CPUINFER_SOURCE_DIR) / "tests/data/goldens";

EngineOptions options_for(const char* golden) {
  EngineOptions options;
  options.model = kGoldens / golden;
  return options;
}

Error prepare_error(const EngineOptions& options) {
  const auto engine = Engine::prepare(options);
  REQUIRE_FALSE(engine);
  return engine.error();
}

std::unique_ptr<Engine> loaded(const EngineOptions& options) {
  auto engine = Engine::prepare(options);
  REQUIRE_MESSAGE(engine, (engine ? "" : engine.error().message));
  REQUIRE((*engine)->load());
  return std::move(*engine);
}

}  // namespace

TEST_CASE("experts per token are checked against the model") {
  EngineOptions options = options_for("moe_basic");
  options.experts = 9;
  CHECK(prepare_error(options).message == "--experts is 9; this model has 8 experts, so it must be between 1 and 8");
  options.experts = -1;
  CHECK(prepare_error(options).code == ErrorCode::kUsage);
  options = options_for("dense_basic");
  options.experts = 2;
  CHECK(prepare_error(options).message == "--experts 2: this model is dense, it has no experts");
}

TEST_CASE("a context over the model's limit names the scaling that would allow it") {
  EngineOptions options = options_for("dense_basic");
  const auto engine = Engine::prepare(options);
  REQUIRE(engine);
  const int64_t limit = (*engine)->config().max_positions;
  CHECK((*engine)->context_tokens() == std::min(limit, kDefaultContextTokens));
  options.context_tokens = limit + 1;
  const Error error = prepare_error(options);
  CHECK(error.code == ErrorCode::kUsage);
  CHECK(error.message.find("positions that this model is made for") != std::string::npos);
  CHECK(error.message.find(format("--rope-scaling auto would choose YaRN for sequences that need it, at some cost in "
                                  "quality: for {} tokens that is yarn:2:{}, which reaches {}",
                                  limit + 1, limit, 2 * limit)) != std::string::npos);
  options.context_tokens = limit * 9;
  CHECK(prepare_error(options).message.find("no rope scaling that is known to work reaches that far") !=
        std::string::npos);
  options.context_tokens = -4;
  CHECK(prepare_error(options).message == "--ctx is -4; it must be 1 or more");

  // With that scaling it runs, and says so.
  options.context_tokens = 2 * limit;
  options.rope.emplace();
  options.rope->type = model::RopeType::kYarn;
  options.rope->factor = 2;
  options.rope->original_max_positions = limit;
  const auto scaled = Engine::prepare(options);
  REQUIRE_MESSAGE(scaled, (scaled ? "" : scaled.error().message));
  bool said = false;
  for (const std::string& line : (*scaled)->describe()) said |= line.find("yarn, factor 2") != std::string::npos;
  CHECK(said);
}

TEST_CASE("rope scaling out of range is refused, and advice starts from the length that the model was trained on") {
  EngineOptions options = options_for("dense_basic");
  options.rope.emplace();
  options.rope->type = model::RopeType::kLinear;
  options.rope->factor = 1e300;
  CHECK(prepare_error(options).message.starts_with("the factor of --rope-scaling is 1e+300; it must be between 1 and"));
  options.rope->factor = 1e6;
  options.context_tokens = int64_t{1} << 60;
  CHECK(prepare_error(options).message.find("is over the 268435456 positions") != std::string::npos);

  options = options_for("rope_yarn4");  // 24 positions, scaled by 4
  options.context_tokens = 150;
  CHECK(prepare_error(options).message.find("for 150 tokens that is yarn:8:24, which reaches 192") !=
        std::string::npos);
}

TEST_CASE("dynamic scaling with a head_dim of 2") {
  const TemporaryCheckpoint checkpoint(R"({"architectures":["Qwen3ForCausalLM"],"hidden_size":8,"num_hidden_layers":1,
    "num_attention_heads":2,"num_key_value_heads":1,"head_dim":2,"vocab_size":16,"intermediate_size":8,
    "rms_norm_eps":1e-6,"tie_word_embeddings":true,"max_position_embeddings":64,"rope_theta":10000.0})");
  EngineOptions options;
  options.model = checkpoint.path() / "";  // with a slash at the end
  options.rope.emplace();
  options.rope->type = model::RopeType::kDynamic;
  options.rope->factor = 2;
  CHECK(prepare_error(options).message == "--rope-scaling dynamic needs a head_dim over 2; this model has 2");
  options.rope.reset();
  const auto engine = Engine::prepare(options);
  REQUIRE(engine);
  CHECK((*engine)->describe()[0].starts_with("model     cpuinfer_test_"));
}

TEST_CASE("a config that promises far more experts than the checkpoint has is refused at once") {
  const TemporaryCheckpoint checkpoint(R"({"architectures":["Qwen3ForCausalLM"],"hidden_size":8,"num_hidden_layers":1,
    "num_attention_heads":2,"num_key_value_heads":1,"head_dim":4,"vocab_size":16,"intermediate_size":8,
    "rms_norm_eps":1e-6,"tie_word_embeddings":true,"max_position_embeddings":64,"rope_theta":10000.0})");
  std::ofstream(checkpoint.path() / "config.json")
      << R"({"architectures":["Qwen3MoeForCausalLM"],"hidden_size":8,"num_hidden_layers":1024,
    "num_attention_heads":2,"num_key_value_heads":1,"head_dim":4,"vocab_size":16,"intermediate_size":8,
    "num_experts":4096,"num_experts_per_tok":8,"moe_intermediate_size":262144,"rms_norm_eps":1e-6,
    "tie_word_embeddings":true,"max_position_embeddings":64,"rope_theta":10000.0})";
  EngineOptions options;
  options.model = checkpoint.path();
  const Error error = prepare_error(options);
  CHECK(error.code == ErrorCode::kBadInput);
  CHECK(error.message.find("1024 layers, 1024 of them with 4096 experts") != std::string::npos);
}

TEST_CASE("not enough memory: refused before loading, with the table") {
  EngineOptions options = options_for("moe_basic");
  options.memory_limit_bytes = 1_MiB;
  auto engine = Engine::prepare(options);
  REQUIRE(engine);
  CHECK_FALSE((*engine)->plan().fits());
  const auto loading = (*engine)->load();
  REQUIRE_FALSE(loading);
  CHECK(loading.error().code == ErrorCode::kDoesNotFit);
  CHECK(loading.error().message.find("--memory-limit") != std::string::npos);
}

TEST_CASE("chunk out of range") {
  EngineOptions options = options_for("moe_basic");
  options.chunk_tokens = 0;
  CHECK(prepare_error(options).message == "--chunk is 0; it must be between 1 and 65536");
}

TEST_CASE("unknown kernels and instruction sets are refused") {
  EngineOptions options = options_for("moe_basic");
  options.gemm = "fastest";
  CHECK(prepare_error(options).code == ErrorCode::kUsage);
  options = options_for("moe_basic");
  options.isa = "sse9";
  CHECK(prepare_error(options).code == ErrorCode::kUsage);
  options = options_for("moe_basic");
  options.numerics = "fp4";
  CHECK(prepare_error(options).code == ErrorCode::kUsage);
}

TEST_CASE("sequences stay inside the context and can be interrupted") {
  EngineOptions options = options_for("moe_basic");
  options.context_tokens = 40;
  options.chunk_tokens = 16;
  const auto engine = loaded(options);
  CHECK(engine->start_sequence(41).error().message ==
        "41 tokens are planned and the context holds 40; raise --ctx or ask for less");
  auto sequence = engine->start_sequence(40);
  REQUIRE(sequence);
  const std::vector<TokenId> tokens(30, 5);
  REQUIRE(engine->append(*sequence, tokens, {}));
  const auto too_many = engine->append(*sequence, tokens, {});
  REQUIRE_FALSE(too_many);
  CHECK(too_many.error().message == "30 tokens do not fit into a context of 40 that already holds 30; raise --ctx");

  // An interruption keeps what was done.
  sequence->truncate(0);
  std::atomic<bool> cancel = false;
  AppendOptions append;
  append.cancel = &cancel;
  append.progress = [&](int64_t, int64_t) { cancel = true; };
  const auto stopped = engine->append(*sequence, tokens, append);
  REQUIRE_FALSE(stopped);
  CHECK(stopped.error().code == ErrorCode::kInterrupted);
  CHECK(stopped.error().message == "interrupted after 16 of 30 tokens");
  CHECK(sequence->length() == 16);
}

TEST_CASE("the number of experts changes the bytes that a token reads") {
  EngineOptions options = options_for("moe_many_experts");
  const auto bytes_with = [&](int experts) {
    options.experts = experts;
    const auto engine = Engine::prepare(options);
    REQUIRE(engine);
    return (*engine)->decode_weight_bytes();
  };
  const int64_t per_expert = bytes_with(2) - bytes_with(1);
  CHECK(per_expert > 0);
  CHECK(bytes_with(12) - bytes_with(2) == 10 * per_expert);
}

TEST_CASE("requests are checked before anything is computed") {
  EngineOptions options = options_for("moe_basic");
  options.context_tokens = 20;
  const auto engine = loaded(options);
  GenerationRequest request;
  CHECK(plan_generation(*engine, request).error().message == "the prompt is empty: there is nothing to continue");
  request.prompt.assign(20, 1);
  CHECK(plan_generation(*engine, request).error().message ==
        "the prompt has 20 tokens and the context 20: no room for an answer; shorten the prompt or raise --ctx");
  request.prompt = {1, 2, 99999};
  CHECK(plan_generation(*engine, request).error().message.starts_with("token id 99999 in the prompt is outside"));
  request.prompt = {1, 2, -3};
  CHECK_FALSE(plan_generation(*engine, request));
  request.prompt = {1, 2, 3};
  CHECK(plan_generation(*engine, request).value() == 17);
  request.max_tokens = 5;
  CHECK(plan_generation(*engine, request).value() == 5);
  request.max_tokens = -5;
  CHECK_FALSE(plan_generation(*engine, request));
  request.max_tokens = 0;
  request.sampling.top_p = 7;
  CHECK(plan_generation(*engine, request).error().message == "top-p is 7; it must be over 0 and at most 1");
}
