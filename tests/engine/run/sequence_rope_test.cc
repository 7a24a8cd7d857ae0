// `--rope-scaling auto`: the bits of a sequence are those of the factor that its planned length asks for, and stay so.
#include <doctest/doctest.h>

#include <cstring>

#include "base/log.h"
#include "tests/engine/run/golden_cases.h"

using namespace cpuinfer;
using namespace cpuinfer::run;

namespace {

GoldenCase golden_named(const char* name) {
  auto goldens = load_golden_cases();
  REQUIRE(goldens);
  for (GoldenCase& golden : *goldens)
    if (golden.name == name) return golden;
  FAIL("no golden " << name);
  return {};
}

std::unique_ptr<Engine> loaded(EngineOptions options) {
  options.chunk_tokens = options.logit_rows = 16;
  options.threads = 2;
  auto engine = Engine::prepare(options);
  REQUIRE_MESSAGE(engine, (engine ? "" : engine.error().message));
  REQUIRE((*engine)->load());
  return std::move(*engine);
}

// Logits of as many of the tokens as a sequence of the planned length takes.
std::vector<float> logits_of(Engine& engine, std::span<const TokenId> tokens, Sequence& sequence) {
  std::vector<float> all;
  AppendOptions append;
  append.logit_rows = LogitRows::kAll;
  append.logits = [&](int64_t, std::span<const std::span<const float>> logits) {
    for (const std::span<const float> row : logits) all.insert(all.end(), row.begin(), row.end());
  };
  const size_t count = std::min(tokens.size(), static_cast<size_t>(sequence.planned_tokens() - sequence.length()));
  const auto appended = engine.append(sequence, tokens.first(count), append);
  REQUIRE_MESSAGE(appended, (appended ? "" : appended.error().message));
  return all;
}

std::vector<float> logits_of(Engine& engine, std::span<const TokenId> tokens, int64_t planned) {
  auto sequence = engine.start_sequence(planned);
  REQUIRE(sequence);
  return logits_of(engine, tokens, *sequence);
}

void check_same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  CHECK(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

}  // namespace

TEST_CASE("auto has the bits of the explicit factor of each bucket") {
  // Native up to 30 positions, scaled from 24; config.json has factor 4 and Transformers' logits are of that.
  const GoldenCase golden = golden_named("rope_yarn4");
  const std::span<const TokenId> tokens(golden.tokens);
  EngineOptions options;
  options.model = golden.checkpoint;
  options.context_tokens = 192;
  options.rope_by_length = true;
  const auto automatic = loaded(options);
  options.rope_by_length = false;
  for (const auto& [factor, lengths] : {std::pair{1, std::pair{8, 30}}, {2, {31, 48}}, {4, {49, 96}}, {8, {97, 192}}}) {
    CAPTURE(factor);
    options.rope.emplace();
    options.context_tokens = lengths.second;
    if (factor > 1) {
      options.rope->type = model::RopeType::kYarn;
      options.rope->factor = factor;
      options.rope->original_max_positions = 24;
    }
    const auto explicitly = loaded(options);
    for (const int planned : {lengths.first, lengths.second}) {
      CAPTURE(planned);
      check_same_bits(logits_of(*automatic, tokens, planned), logits_of(*explicitly, tokens, planned));
    }
  }
  // Factor 4 is what the golden has.
  options.rope.reset();
  options.context_tokens = 96;
  check_same_bits(logits_of(*automatic, tokens, 96), logits_of(*loaded(options), tokens, 96));
  // Factors make a difference.
  CHECK(logits_of(*automatic, tokens.first(8), 30) != logits_of(*automatic, tokens.first(8), 31));
}

TEST_CASE("a sequence keeps its scaling when it is cut, emptied or moved") {
  const GoldenCase golden = golden_named("rope_yarn2");
  EngineOptions options;
  options.model = golden.checkpoint;
  options.rope_by_length = true;
  const int64_t original = [&] {
    options.context_tokens = 1;
    return loaded(options)->config().rope_by_length->original_positions;
  }();
  options.context_tokens = 4 * original;
  options.kv_tokens = 1024;
  const auto engine = loaded(options);
  const auto started = engine->start_sequence(4 * original);
  REQUIRE(started);
  CHECK(started->rope().factor == 4);
  const std::span<const TokenId> tokens = std::span<const TokenId>(golden.tokens).first(20);
  auto first = engine->start_sequence(3 * original);
  REQUIRE(first);
  const std::vector<float> expected = logits_of(*engine, tokens, *first);
  first->truncate(0);
  check_same_bits(expected, logits_of(*engine, tokens, *first));
  Sequence moved = std::move(*first);
  CHECK(moved.rope().factor == 4);
  CHECK(moved.planned_tokens() == 3 * original);
  moved.truncate(5);
  const std::vector<float> rest = logits_of(*engine, tokens.subspan(5), moved);
  CHECK(std::memcmp(rest.data(), expected.data() + 5 * golden.vocab, rest.size() * sizeof(float)) == 0);
  CHECK(engine->start_sequence(2 * original)->rope().factor == 2);
  CHECK(engine->start_sequence(original)->rope().type == model::RopeType::kDefault);
}

TEST_CASE("auto over a scaling of config.json says that it takes its place") {
  std::string said;
  set_log_sink([&](LogLevel, std::string_view line) { said += line; });
  EngineOptions options;
  options.model = golden_named("rope_yarn4").checkpoint;
  options.rope_by_length = true;
  options.context_tokens = 192;
  const auto engine = Engine::prepare(options);
  set_log_sink(nullptr);
  REQUIRE(engine);
  CHECK(said ==
        "--rope-scaling auto takes the place of the scaling in config.json (yarn, factor 4, theta 100, original 24, "
        "attention factor 1.1386): sequences of up to 30 tokens have none");
  bool described = false;
  for (const std::string& line : (*engine)->describe())
    described |=
        line.starts_with("rope      auto, for each sequence: no scaling up to 30 tokens, yarn factor 2 up to 48");
  CHECK(described);
  options.context_tokens = 193;
  const auto refused = Engine::prepare(options);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message.starts_with("--ctx 193 is over the 192 positions that this model is made for (auto, "));
}
