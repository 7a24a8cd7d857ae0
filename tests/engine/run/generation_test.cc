// generate() over a model with random weights and a real, small tokenizer: reuse, stops, interruption.
#include "engine/run/generation.h"

#include <doctest/doctest.h>

#include "tests/engine/run/random_checkpoint.h"

using namespace cpuinfer;
using namespace cpuinfer::run;

namespace {

const checkpoint::Tokenizer& tokenizer() {
  static const auto opened =
      checkpoint::Tokenizer::open(std::filesystem::path(CPUINFER_SOURCE_DIR) / "tests/data/tokenizer/small");
  REQUIRE_MESSAGE(opened, (opened ? "" : opened.error().message));
  return *opened;
}

struct Fixture {
  TemporaryCheckpoint checkpoint{format(
      R"({{"architectures":["Qwen3MoeForCausalLM"],"hidden_size":32,"num_hidden_layers":2,"num_attention_heads":4,
      "num_key_value_heads":2,"head_dim":16,"vocab_size":{},"intermediate_size":32,"num_experts":4,
      "num_experts_per_tok":2,"moe_intermediate_size":16,"norm_topk_prob":true,"rms_norm_eps":1e-6,
      "tie_word_embeddings":true,"max_position_embeddings":1024,"rope_theta":10000.0,"torch_dtype":"bfloat16"}})",
      tokenizer().id_limit())};
  std::unique_ptr<Engine> engine;

  Fixture() {
    EngineOptions options;
    options.model = checkpoint.path();
    options.context_tokens = 700;
    options.chunk_tokens = 64;
    auto prepared = Engine::prepare(options);
    REQUIRE_MESSAGE(prepared, (prepared ? "" : prepared.error().message));
    engine = std::move(*prepared);
    REQUIRE(engine->load());
  }

  static GenerationRequest request(int prompt_tokens, int64_t max_tokens) {
    GenerationRequest made;
    for (int i = 0; i < prompt_tokens; ++i) made.prompt.push_back((i * 37 + 11) % 250);
    made.max_tokens = max_tokens;
    made.sampling.temperature = 1;
    made.sampling.seed = 7;
    return made;
  }

  GenerationResult fresh(const GenerationRequest& wanted, const GenerationEvents& events = {}) {
    auto sequence = engine->start_sequence(700);
    REQUIRE(sequence);
    auto result = generate(*engine, tokenizer(), *sequence, wanted, events);
    REQUIRE_MESSAGE(result, (result ? "" : result.error().message));
    return *result;
  }
};

// The cache holds one context: what other sequences give is computed before a long-lived one begins.

}  // namespace

TEST_CASE_FIXTURE(Fixture, "the text is the answer's tokens, streamed piece by piece") {
  std::string streamed;
  int tokens = 0;
  GenerationEvents events;
  events.token = [&](const Sample&, std::string_view text) {
    streamed += text;
    ++tokens;
  };
  std::vector<int64_t> prefill;
  events.prefill = [&](int64_t done, int64_t total) {
    CHECK(total == 150);
    prefill.push_back(done);
  };
  const GenerationResult result = fresh(request(150, 40), events);
  CHECK(result.finish_reason == FinishReason::kLength);
  CHECK(result.answer.size() == 40);
  CHECK(tokens == 40);
  CHECK(result.decoded_tokens == 39);
  CHECK(result.text == streamed);
  CHECK(result.text == tokenizer().decode(result.answer, true));
  CHECK(prefill == std::vector<int64_t>{64, 128, 150});
}

TEST_CASE_FIXTURE(Fixture, "a sequence that holds part of the prompt gives the same answer with less work") {
  const GenerationRequest first = request(300, 20);
  const GenerationResult expected = fresh(first);
  GenerationRequest second = first;  // a second turn
  second.prompt.insert(second.prompt.end(), expected.answer.begin(), expected.answer.end());
  second.prompt.push_back(42);
  const GenerationResult expected_second = fresh(second);
  GenerationRequest other = first;  // another branch
  other.prompt[270] = 3;
  const GenerationResult expected_other = fresh(other);

  auto sequence = engine->start_sequence(700);
  REQUIRE(sequence);
  REQUIRE(generate(*engine, tokenizer(), *sequence, request(300, 5)));
  const auto again = generate(*engine, tokenizer(), *sequence, first);
  REQUIRE(again);
  CHECK(again->reused.memory == 299);
  CHECK(again->answer == expected.answer);
  const auto continued = generate(*engine, tokenizer(), *sequence, second);
  REQUIRE(continued);
  CHECK(continued->reused.memory == 300 + 19);
  CHECK(continued->answer == expected_second.answer);
  const auto branched = generate(*engine, tokenizer(), *sequence, other);
  REQUIRE(branched);
  CHECK(branched->reused.memory == 270);
  CHECK(branched->answer == expected_other.answer);
}

TEST_CASE_FIXTURE(Fixture, "an answer ends where its sequence does, and a prompt that fills it is refused") {
  auto sequence = engine->start_sequence(50);
  REQUIRE(sequence);
  const auto answer = generate(*engine, tokenizer(), *sequence, request(40, 30));
  REQUIRE(answer);
  CHECK(answer->answer.size() == 10);
  CHECK(answer->finish_reason == FinishReason::kLength);
  const auto refused = generate(*engine, tokenizer(), *sequence, request(50, 30));
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ErrorCode::kUsage);
  CHECK(refused.error().message ==
        "the prompt has 50 tokens and the sequence was started for 50: no room for an answer; start it for more");
}

TEST_CASE_FIXTURE(Fixture, "stop tokens and stop strings end the answer and are not shown") {
  const GenerationResult whole = fresh(request(60, 30));
  GenerationRequest stopped = request(60, 30);
  stopped.stop_tokens = {whole.answer[12]};
  const GenerationResult by_token = fresh(stopped);
  CHECK(by_token.finish_reason == FinishReason::kStop);
  CHECK(by_token.answer.back() == whole.answer[12]);
  CHECK(by_token.answer.size() <= 13);

  stopped = request(60, 30);
  REQUIRE(whole.text.size() > 12);
  const std::string stop = whole.text.substr(8, 3);
  stopped.stop_strings = {stop};
  const GenerationResult by_string = fresh(stopped);
  CHECK(by_string.finish_reason == FinishReason::kStop);
  CHECK(by_string.text == whole.text.substr(0, whole.text.find(stop)));
}

TEST_CASE_FIXTURE(Fixture, "text that waits for a stop string is shown when the answer is full or interrupted") {
  const GenerationResult whole = fresh(request(60, 30));
  GenerationRequest waiting = request(60, 30);
  waiting.stop_strings = {whole.text + "never"};
  CHECK(fresh(waiting).text == whole.text);

  std::atomic<bool> cancel = false;
  std::string streamed, rest;
  int tokens = 0;
  GenerationEvents events;
  events.cancel = &cancel;
  events.token = [&](const Sample&, std::string_view text) {
    streamed += text;
    if (++tokens == 10) cancel = true;
  };
  events.rest = [&](std::string_view text) { rest += text; };
  const GenerationResult interrupted = fresh(waiting, events);
  CHECK(interrupted.finish_reason == FinishReason::kInterrupted);
  CHECK(interrupted.answer.size() == 10);
  CHECK(interrupted.text == streamed + rest);
  CHECK(interrupted.text == tokenizer().decode(interrupted.answer, true));
}

TEST_CASE_FIXTURE(Fixture, "a seed gives the same answer again, another seed another") {
  GenerationRequest one = request(40, 30);
  CHECK(fresh(one).answer == fresh(one).answer);
  GenerationRequest other = one;
  other.sampling.seed = 8;
  CHECK(fresh(other).answer != fresh(one).answer);
  GenerationRequest greedy = one;
  greedy.sampling.temperature = 0;
  GenerationRequest top_one = other;
  top_one.sampling.top_k = 1;
  CHECK(fresh(greedy).answer == fresh(top_one).answer);
}

TEST_CASE_FIXTURE(Fixture, "log probabilities come with the tokens") {
  GenerationRequest asked = request(40, 5);
  asked.top_logprobs = 3;
  GenerationEvents events;
  events.token = [&](const Sample& sample, std::string_view) {
    CHECK(sample.top.size() == 3);
    CHECK(sample.top[0].logprob >= sample.top[1].logprob);
    CHECK(sample.chosen.logprob <= sample.top[0].logprob);
  };
  fresh(asked, events);
}
