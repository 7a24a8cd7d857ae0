// The promise: the same request gives the same bits, whatever the kernels of one numeric profile, the threads, the
// (simulated) nodes, the chunks, and what an earlier request left in the cache.
#include <doctest/doctest.h>

#include <cstdio>
#include <cstring>
#include <iterator>

#include "base/format.h"
#include "engine/run/engine.h"
#include "tests/engine/run/golden_cases.h"
#include "tests/engine/run/random_checkpoint.h"
#include "tests/engine/run/synthetic_engine.h"
#include "tests/kernels/kernel_data.h"

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

// 1 layer, 64 heads on 1 kv head, 1,100 tokens, random weights.
GoldenCase wide_group_case() {
  static const TemporaryCheckpoint checkpoint(R"({"architectures":["Qwen3ForCausalLM"],"hidden_size":32,
    "num_hidden_layers":1,"num_attention_heads":64,"num_key_value_heads":1,"head_dim":16,"vocab_size":64,
    "intermediate_size":32,"rms_norm_eps":1e-6,"tie_word_embeddings":true,"max_position_embeddings":2048,
    "rope_theta":10000.0,"torch_dtype":"bfloat16"})");
  GoldenCase golden;
  golden.checkpoint = checkpoint.path();
  golden.vocab = 64;
  for (int i = 0; i < 1100; ++i) golden.tokens.push_back(i * 29 % 61);
  return golden;
}

uint64_t fnv1a(std::span<const float> values) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const std::byte byte : std::as_bytes(values)) hash = (hash ^ static_cast<uint64_t>(byte)) * 0x100000001b3u;
  return hash;
}

std::vector<float> logits_of(const GoldenCase& golden, EngineOptions options) {
  auto engine = open_golden(golden, options);
  REQUIRE_MESSAGE(engine, (engine ? "" : engine.error().message));
  auto logits = all_logits(**engine, golden.tokens);
  REQUIRE_MESSAGE(logits, (logits ? "" : logits.error().message));
  REQUIRE(logits->size() == golden.tokens.size() * golden.vocab);
  return *logits;
}

kernels::Isa needs_of(std::string_view gemm, kernels::Profile profile) {
  for (const kernels::GemmKernel& row : kernels::gemm_kernels())
    if (row.name == gemm && row.profile == profile) return row.needs;
  FAIL("no kernel " << gemm);
  return {};
}

void check_same_bits(const std::vector<float>& expected, const std::vector<float>& found) {
  REQUIRE(found.size() == expected.size());
  CHECK(fnv1a(found) == fnv1a(expected));
  CHECK(std::memcmp(found.data(), expected.data(), expected.size() * sizeof(float)) == 0);
}

// A golden and the hash of its logits in both profiles: the table of docs/numerics.md. Other hashes mean that bits have
// changed: raise kNumericsVersion, and put the new hashes there and here.
struct PinnedHash {
  const char* golden;
  uint64_t dp, amx;
};
constexpr PinnedHash kMoe = {"moe_basic", 0x34df219a9684959a, 0x7e5066ad35343c7e};
constexpr PinnedHash kOddSizes = {"dense_prime_sizes", 0x480c6db3d39a6c57, 0xfed28b25f7babe9a};
constexpr PinnedHash kLong = {"long_moe_1300", 0x7a336ae5cdda975b, 0x30aeb3f019826365};

void check_profile(const PinnedHash& pinned, const char* numerics, std::span<const char* const> gemms,
                   std::span<const int> chunks) {
  const GoldenCase golden = golden_named(pinned.golden);
  const bool dp = std::string_view(numerics) == "dp";
  EngineOptions reference;
  reference.numerics = numerics;
  reference.gemm = "reference";
  reference.isa = "reference";
  reference.threads = 1;
  reference.chunk_tokens = 256;
  const std::vector<float> expected = logits_of(golden, reference);
  std::printf("%s, numerics %s: logits hash %016lx\n", golden.name.c_str(), numerics,
              static_cast<unsigned long>(fnv1a(expected)));
  CHECK(fnv1a(expected) == (dp ? pinned.dp : pinned.amx));
  for (const char* gemm : gemms) {
    const kernels::Profile profile = dp ? kernels::Profile::kDp : kernels::Profile::kAmx;
    if (!kernels::runs_here(format("{} ({})", gemm, numerics), needs_of(gemm, profile))) continue;
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
        check_same_bits(expected, logits_of(golden, options));
      }
    }
  }
}

}  // namespace

TEST_CASE("numerics dp: kernels x threads x chunks") {
  constexpr const char* kGemms[] = {"reference", "portable", "avx512-fma", "avx512-dp"};
  constexpr int kChunks[] = {1, 7, 256, 2048};
  check_profile(kMoe, "dp", kGemms, kChunks);
  check_profile(kOddSizes, "dp", kGemms, kChunks);
}

TEST_CASE("numerics dp: 1,300 tokens cross leaves and superblocks") {
  constexpr const char* kGemms[] = {"portable", "avx512-fma", "avx512-dp"};
  // Up to 4 rows take the split form of attention; steps of 3 straddle the superblock at 1,024.
  constexpr int kChunks[] = {1, 3, 4, 7, 256, 2048};
  check_profile(kLong, "dp", kGemms, kChunks);
}

TEST_CASE("numerics amx: kernels x threads x chunks") {
  constexpr const char* kGemms[] = {"reference", "portable", "avx512-fma", "amx-emulated", "amx-tile"};
  constexpr int kChunks[] = {1, 7, 256, 2048};
  check_profile(kMoe, "amx", kGemms, kChunks);
  check_profile(kOddSizes, "amx", kGemms, kChunks);
}

TEST_CASE("numerics amx: 1,300 tokens cross leaves and superblocks") {
  constexpr const char* kGemms[] = {"avx512-fma", "amx-emulated", "amx-tile"};
  constexpr int kChunks[] = {1, 3, 256};
  check_profile(kLong, "amx", kGemms, kChunks);
}

TEST_CASE("nodes and placements only move ownership") {
  // Fewer nodes than kv heads, as many, more, and numbers that do not divide; whole experts on each.
  if (std::size(kSimulatedNodes) == 1) MESSAGE("SKIPPED under a sanitizer: all nodes but 3");
  for (const char* name : {"moe_many_experts", "long_moe_1300", "dense_prime_sizes"}) {
    const GoldenCase golden = golden_named(name);
    EngineOptions options;
    options.threads = 1;
    const std::vector<float> expected = logits_of(golden, options);
    for (const int nodes : kSimulatedNodes) {
      for (const bool whole : {false, true}) {
        for (const int chunk : {3, 256}) {
          CAPTURE(golden.name);
          CAPTURE(nodes);
          CAPTURE(whole);
          CAPTURE(chunk);
          options.machine.simulated_nodes = nodes;
          options.threads = nodes + 1;
          options.whole_experts = whole;
          options.chunk_tokens = chunk;
          check_same_bits(expected, logits_of(golden, options));
        }
      }
    }
  }
}

TEST_CASE("64 query heads on one kv head: steps of 2 to 4 rows past a superblock") {
  // The scratch of a worker must hold kSplitRows tokens of such a group.
  const GoldenCase golden = wide_group_case();
  EngineOptions options;
  options.chunk_tokens = 512;
  const std::vector<float> expected = logits_of(golden, options);
  for (const int chunk : {1, 2, 3, 4, 7}) {
    CAPTURE(chunk);
    options.chunk_tokens = chunk;
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
