// The promise: the same request gives the same bits, whatever the kernels of one numeric profile, the threads, the
// (simulated) nodes, the chunks, and what an earlier request left in the cache.
#include <doctest/doctest.h>

#include <cstdio>
#include <cstring>

#include "base/format.h"
#include "engine/run/generation.h"
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

uint64_t fnv1a(std::span<const float> values) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const std::byte byte : std::as_bytes(values)) hash = (hash ^ static_cast<uint64_t>(byte)) * 0x100000001b3u;
  return hash;
}

// Logits of all tokens, or nothing if this CPU cannot run the kernel.
std::vector<float> logits_of(const GoldenCase& golden, EngineOptions options) {
  auto engine = open_golden(golden, options);
  if (!engine && engine.error().code == ErrorCode::kUnsupported) {
    MESSAGE("skipped: " << engine.error().message);
    return {};
  }
  REQUIRE_MESSAGE(engine, (engine ? "" : engine.error().message));
  auto logits = all_logits(**engine, golden.tokens);
  REQUIRE_MESSAGE(logits, (logits ? "" : logits.error().message));
  return *logits;
}

void check_same_bits(const std::vector<float>& expected, const std::vector<float>& found) {
  REQUIRE(found.size() == expected.size());
  CHECK(fnv1a(found) == fnv1a(expected));
  CHECK(std::memcmp(found.data(), expected.data(), expected.size() * sizeof(float)) == 0);
}

void check_profile(const GoldenCase& golden, const char* numerics, std::span<const char* const> gemms,
                   std::span<const int> chunks) {
  EngineOptions reference;
  reference.numerics = numerics;
  reference.gemm = "reference";
  reference.isa = "reference";
  reference.threads = 1;
  reference.chunk_tokens = 256;
  const std::vector<float> expected = logits_of(golden, reference);
  std::printf("%s, numerics %s: logits hash %016lx\n", golden.name.c_str(), numerics,
              static_cast<unsigned long>(fnv1a(expected)));
  for (const char* gemm : gemms) {
    for (const int threads : {1, 2, 3}) {
      for (const int chunk : chunks) {
        EngineOptions options;
        options.numerics = numerics;
        options.gemm = gemm;
        options.threads = threads;
        options.chunk_tokens = chunk;
        CAPTURE(gemm);
        CAPTURE(threads);
        CAPTURE(chunk);
        const std::vector<float> logits = logits_of(golden, options);
        if (!logits.empty()) check_same_bits(expected, logits);
      }
    }
  }
}

}  // namespace

TEST_CASE("numerics dp: kernels x threads x chunks") {
  constexpr const char* kGemms[] = {"reference", "portable", "avx512-fma", "avx512-dp"};
  constexpr int kChunks[] = {1, 7, 256, 2048};
  check_profile(golden_named("moe_basic"), "dp", kGemms, kChunks);
  check_profile(golden_named("dense_prime_sizes"), "dp", kGemms, kChunks);
}

TEST_CASE("numerics dp: 1,300 tokens cross leaves and superblocks") {
  constexpr const char* kGemms[] = {"portable", "avx512-fma", "avx512-dp"};
  constexpr int kChunks[] = {1, 7, 256, 2048};
  check_profile(golden_named("long_moe_1300"), "dp", kGemms, kChunks);
}

TEST_CASE("numerics amx: kernels x threads x chunks") {
  constexpr const char* kGemms[] = {"reference", "portable", "avx512-fma", "amx-emulated", "amx-tile"};
  constexpr int kChunks[] = {1, 7, 256, 2048};
  check_profile(golden_named("moe_basic"), "amx", kGemms, kChunks);
  check_profile(golden_named("dense_prime_sizes"), "amx", kGemms, kChunks);
}

TEST_CASE("numerics amx: 1,300 tokens cross leaves and superblocks") {
  constexpr const char* kGemms[] = {"avx512-fma", "amx-emulated", "amx-tile"};
  constexpr int kChunks[] = {1, 256};
  check_profile(golden_named("long_moe_1300"), "amx", kGemms, kChunks);
}

TEST_CASE("simulated nodes only move ownership") {
  const GoldenCase golden = golden_named("moe_many_experts");
  EngineOptions options;
  options.threads = 1;
  const std::vector<float> expected = logits_of(golden, options);
  for (const int nodes : {2, 3, 4}) {
    CAPTURE(nodes);
    options.nodes = nodes;
    options.threads = 2 * nodes;
    check_same_bits(expected, logits_of(golden, options));
  }
}

TEST_CASE("a sequence that was truncated and continued equals a fresh one") {
  const GoldenCase golden = golden_named("long_moe_1300");
  EngineOptions options;
  options.chunk_tokens = 512;
  auto engine = open_golden(golden, options);
  REQUIRE(engine);
  const auto last_logits = [&](Sequence& sequence, std::span<const TokenId> tokens) {
    std::vector<float> last;
    AppendOptions append;
    append.logits = [&](int64_t, std::span<const std::span<const float>> logits) {
      last.assign(logits.back().begin(), logits.back().end());
    };
    REQUIRE((*engine)->append(sequence, tokens, append));
    return last;
  };
  const std::span<const TokenId> tokens(golden.tokens);
  std::vector<float> expected;
  {
    auto fresh = (*engine)->start_sequence(1300);
    REQUIRE(fresh);
    expected = last_logits(*fresh, tokens);
  }
  // The page pool is exactly one sequence large, so this one takes the pages of the first.
  auto reused = (*engine)->start_sequence(1300);
  REQUIRE(reused);
  std::vector<TokenId> other(tokens.begin(), tokens.end());
  for (size_t i = 300; i < other.size(); ++i) other[i] = (other[i] + 1) % golden.vocab;
  last_logits(*reused, other);
  reused->truncate(300);
  CHECK(reused->length() == 300);
  check_same_bits(expected, last_logits(*reused, tokens.subspan(300)));
}
