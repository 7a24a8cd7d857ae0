// Steps of many sequences: what is refused, and that fabricated contexts and counters are what they say. The bits are
// tested by batch_invariance_test.
#include <cmath>

#include "tests/engine/run/synthetic_engine.h"

using namespace cpuinfer;
using namespace cpuinfer::run;

namespace {

EngineOptions small_options(int sequences, int64_t context) {
  EngineOptions options;
  options.synthetic = small_model(8192);
  options.context_tokens = context;
  options.sequences = sequences;
  options.threads = 2;
  return options;
}

std::vector<Sequence> started(Engine& engine, int count) {
  std::vector<Sequence> sequences;
  for (int i = 0; i < count; ++i) {
    auto sequence = engine.start_sequence(engine.context_tokens());
    REQUIRE(sequence);
    sequences.push_back(std::move(*sequence));
  }
  return sequences;
}

}  // namespace

TEST_CASE("a synthetic engine needs no files and says what it is") {
  const auto engine = loaded_engine(small_options(3, 512));
  const std::vector<std::string> facts = engine->describe();
  CHECK(facts[0] == "model     small (Qwen3MoeForCausalLM), 1 layers, random weights from seed 1");
  CHECK(facts[2].starts_with("context   512 tokens, 3 sequences at a time, KV cache 192.0 KiB"));
  CHECK(engine->limits().sequences == 3);
  CHECK(engine->limits().logit_rows == 3);

  EngineOptions bad = small_options(1, 512);
  bad.synthetic->config.set("hidden_size", -1);
  const auto refused = Engine::prepare(bad);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message.find("hidden_size") != std::string::npos);
}

TEST_CASE("the KV cache is planned for all sequences, and refused before it is allocated") {
  const auto kv_bytes = [](const EngineOptions& options) {
    const auto engine = Engine::prepare(options);
    REQUIRE(engine);
    for (const load::PlanLine& line : (*engine)->plan().lines)
      if (line.purpose == "KV cache") return line.total();
    return int64_t{0};
  };
  const int64_t page = 256 * 128;
  CHECK(kv_bytes(small_options(1, 300)) == 2 * page);
  CHECK(kv_bytes(small_options(5, 300)) == 10 * page);
  EngineOptions shared = small_options(5, 4096);
  shared.kv_tokens = 1000;
  CHECK(kv_bytes(shared) == 4 * page);

  EngineOptions large = small_options(4096, 8192);
  large.memory_limit_bytes = 600_MiB;
  auto engine = Engine::prepare(large);
  REQUIRE(engine);
  const auto loading = (*engine)->load();
  REQUIRE_FALSE(loading);
  CHECK(loading.error().code == ErrorCode::kDoesNotFit);
  CHECK(loading.error().message.find("KV cache") != std::string::npos);
  CHECK(loading.error().message.find("would fit") != std::string::npos);
}

TEST_CASE("a step over what a sequence was planned for is refused and computes nothing") {
  EngineOptions options = small_options(2, 600);
  const auto engine = loaded_engine(options);
  std::vector<Sequence> sequences = started(*engine, 1);
  auto shorter = engine->start_sequence(520);
  REQUIRE(shorter);
  sequences.push_back(std::move(*shorter));
  const std::vector<TokenId> tokens(500, 3);
  const std::span<const TokenId> all(tokens);
  {
    const StepRequest request[] = {{&sequences[0], all, LogitRows::kNone}};
    const auto logits = engine->step(request);
    REQUIRE(logits);
    CHECK((*logits)[0].rows() == 0);
  }
  const StepRequest too_long[] = {{&sequences[1], all.first(1), LogitRows::kLast},
                                  {&sequences[0], all.first(101), LogitRows::kLast}};
  const auto refused = engine->step(too_long);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ErrorCode::kUsage);
  CHECK(refused.error().message == "101 tokens do not fit into a context of 600 that already holds 500; raise --ctx");

  AppendOptions append;
  append.logit_rows = LogitRows::kNone;
  REQUIRE(engine->append(sequences[1], all, append));
  const auto over_plan = engine->append(sequences[1], all.first(21), append);
  REQUIRE_FALSE(over_plan);
  CHECK(over_plan.error().code == ErrorCode::kUsage);
  CHECK(over_plan.error().message ==
        "21 tokens do not fit into a sequence that was started for 520 and already holds 500; start it for more");
  CHECK(sequences[0].length() == 500);
  CHECK(sequences[1].length() == 500);
  REQUIRE(engine->append(sequences[1], all.first(20), append));
}

TEST_CASE("a sequence that was admitted never lacks a page; others wait or are refused") {
  EngineOptions options = small_options(3, 2048);
  options.kv_tokens = 6 * 256;  // for all three
  const auto engine = loaded_engine(options);
  const auto never = engine->start_sequence(6 * 256 + 1);
  REQUIRE_FALSE(never);
  CHECK(never.error().code == ErrorCode::kDoesNotFit);
  CHECK(never.error().message.find("need 7 KV pages of 256 tokens and the cache has 6 (1536 tokens)") !=
        std::string::npos);

  auto first = engine->start_sequence(700);  // 3 pages
  auto second = engine->start_sequence(512);
  REQUIRE(first);
  REQUIRE(second);
  const auto waits = engine->start_sequence(257);
  REQUIRE_FALSE(waits);
  CHECK(waits.error().code == ErrorCode::kBusy);
  CHECK(waits.error().message.find("5 of 6 are promised to 2 other sequences") != std::string::npos);
  auto third = engine->start_sequence(256);
  REQUIRE(third);
  CHECK(engine->admission().promised() == 6);

  // All grow to what they were promised, at the same time, in any order.
  const std::vector<TokenId> tokens(300, 3);
  const std::span<const TokenId> all(tokens);
  for (const auto& [sequence, length] : {std::pair{&*third, 256}, {&*first, 700}, {&*second, 512}})
    while (sequence->length() < length) {
      const auto count = std::min<int64_t>(length - sequence->length(), 300);
      const StepRequest request[] = {{sequence, all.first(count), LogitRows::kLast}};
      REQUIRE(engine->step(request));
    }
  // An end, a cut and a move: only the end gives promises back.
  first->truncate(0);
  CHECK(engine->start_sequence(1).error().code == ErrorCode::kBusy);
  Sequence moved = std::move(*first);
  CHECK(engine->admission().sequences() == 3);
  moved = std::move(*second);  // the first one lives on in `second`
  CHECK(engine->admission().promised() == 6);
  {
    const Sequence ended = std::move(moved);
  }
  CHECK(engine->admission().promised() == 4);
  CHECK(engine->admission().sequences() == 2);
  REQUIRE(engine->start_sequence(512));
}

TEST_CASE("a fabricated context is finite, repeatable and the same for any number of threads") {
  std::vector<float> expected;
  for (const int threads : {1, 2, 3}) {
    EngineOptions options = small_options(1, 3000);
    options.threads = threads;
    const auto engine = loaded_engine(options);
    for (const int64_t depth : {2900, 2560, 2900}) {
      std::vector<Sequence> sequences = started(*engine, 1);
      REQUIRE(engine->fabricate_context(sequences[0], 256));
      REQUIRE(engine->fabricate_context(sequences[0], depth));
      CHECK(sequences[0].length() == depth);
      const TokenId tokens[] = {5, 7, 11};
      const StepRequest request[] = {{&sequences[0], tokens, LogitRows::kLast}};
      const auto logits = engine->step(request);
      REQUIRE(logits);
      const std::vector<float> found((*logits)[0][0].begin(), (*logits)[0][0].end());
      for (const float value : found) REQUIRE(std::isfinite(value));
      if (depth != 2900) {
        CHECK(found != expected);
      } else if (expected.empty()) {
        expected = found;
      } else {
        CHECK(found == expected);
      }
    }
    std::vector<Sequence> sequences = started(*engine, 1);
    const auto too_long = engine->fabricate_context(sequences[0], 3001);
    REQUIRE_FALSE(too_long);
    CHECK(too_long.error().message ==
          "3001 tokens do not fit into a context of 3000 that already holds 0; raise --ctx");
  }
}

TEST_CASE("changing the number of experts equals an engine made with it") {
  const auto logits_of = [](Engine& engine) {
    std::vector<Sequence> sequences = started(engine, 1);
    const TokenId tokens[] = {5, 7, 11, 190, 33};
    const StepRequest request[] = {{&sequences[0], tokens, LogitRows::kLast}};
    const auto logits = engine.step(request);
    REQUIRE(logits);
    return std::vector<float>((*logits)[0][0].begin(), (*logits)[0][0].end());
  };
  EngineOptions options = small_options(1, 512);
  options.experts = 6;
  const auto most = loaded_engine(options);
  std::vector<float> previous;
  for (const int experts : {6, 2, 5}) {
    options.experts = experts;
    most->set_experts(experts);
    CHECK(most->config().experts_per_token == experts);
    const std::vector<float> found = logits_of(*most);
    CHECK(found == logits_of(*loaded_engine(options)));
    CHECK(found != previous);
    previous = found;
  }
}

TEST_CASE("counting can be turned off, which changes no bit") {
  const auto engine = loaded_engine(small_options(1, 512));
  std::vector<float> logits[2];
  for (const bool counting : {false, true}) {
    std::vector<Sequence> sequences = started(*engine, 1);
    engine->set_counting(counting);
    engine->reset_profile();
    for (const TokenId token : {5, 7, 11}) {
      const StepRequest request[] = {{&sequences[0], {&token, 1}, LogitRows::kLast}};
      const auto step = engine->step(request);
      REQUIRE(step);
      logits[counting].assign((*step)[0][0].begin(), (*step)[0][0].end());
    }
    const StepProfile profile = engine->profile(StepKind::kDecode);
    CHECK(profile.steps == 3);
    CHECK(profile.ns > 0);
    model::PhaseCounters sum;
    for (const model::PhaseCounters& phase : profile.phases) sum += phase;
    for (const int64_t value : {sum.busy_ns, sum.bytes, sum.flops}) CHECK((value > 0) == counting);
    if (!counting) CHECK(sum.wait_ns == 0);
  }
  CHECK(logits[0] == logits[1]);
}

TEST_CASE("profiles are kept by the kind of the steps") {
  const auto engine = loaded_engine(small_options(2, 512));
  std::vector<Sequence> sequences = started(*engine, 2);
  const TokenId tokens[] = {5, 7, 11};
  const std::span<const TokenId> all(tokens);
  for (int i = 0; i < 3; ++i) {
    const StepRequest decode[] = {{&sequences[0], all.first(1), LogitRows::kLast},
                                  {&sequences[1], all.first(1), LogitRows::kLast}};
    REQUIRE(engine->step(decode));
    const StepRequest mixed[] = {{&sequences[0], all, LogitRows::kLast},
                                 {&sequences[1], all.first(1), LogitRows::kLast}};
    REQUIRE(engine->step(mixed));
  }
  const StepProfile decode = engine->profile(StepKind::kDecode);
  const StepProfile prefill = engine->profile(StepKind::kPrefill);
  CHECK(decode.steps == 3);
  CHECK(decode.tokens == 6);
  CHECK(decode.ns > 0);
  CHECK(prefill.steps == 3);
  CHECK(prefill.tokens == 12);
  StepProfile both = decode;
  both += prefill;
  CHECK(both.steps == 6);
  CHECK(both.ns == decode.ns + prefill.ns);
  engine->reset_profile();
  CHECK(engine->profile(StepKind::kDecode).steps == 0);
  CHECK(engine->profile(StepKind::kPrefill).ns == 0);
}
