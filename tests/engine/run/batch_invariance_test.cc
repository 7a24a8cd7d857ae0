// The promise, across batches: what a request gets does not depend on the other requests of its steps, not by a bit.
#include <array>
#include <cstring>
#include <iterator>
#include <string_view>

#include "engine/load/synthetic.h"
#include "tests/engine/run/synthetic_engine.h"
#include "tests/kernels/kernel_data.h"

using namespace cpuinfer;
using namespace cpuinfer::run;

namespace {

constexpr int kBatches[] = {2, 7, 32};
constexpr int kContext = 1400;
constexpr int kVocab = 199;

TokenId token_of(int request, int64_t position) {
  return static_cast<TokenId>(load::random_bits(static_cast<uint64_t>(request), static_cast<uint64_t>(position)) %
                              kVocab);
}

// How many tokens a request adds in a step: chunks of prefill of many sizes, then decoding. Request 0 is the one that
// is watched: a long prefill that crosses leaves and a superblock, then 8 steps of one token.
int rows_of(int request, int step) {
  constexpr std::array<int, 6> kWatched = {300, 3, 512, 1, 200, 12};
  if (request == 0) return step < static_cast<int>(kWatched.size()) ? kWatched[step] : 1;
  constexpr std::array<int, 8> kOthers = {1, 17, 2, 40, 4, 1, 5, 64};
  return step < request % 5 ? kOthers[(request + step) % kOthers.size()] : 1;
}
constexpr int kSteps = 14;

std::unique_ptr<Engine> engine_for(const char* numerics, const char* gemm, int threads) {
  EngineOptions options;
  options.synthetic = small_model(2048, 2);
  options.context_tokens = kContext;
  options.sequences = 32;
  options.kv_tokens = 32 * 512 + kContext;
  options.chunk_tokens = kContext;
  options.numerics = numerics;
  options.gemm = gemm;
  options.threads = threads;
  return loaded_engine(options);
}

// Logits of request 0 after each step, among batch - 1 others; `place` is its place among them.
std::vector<float> watched_logits(Engine& engine, int batch, int place) {
  std::vector<int> numbers;  // of requests, in the order of the batch
  for (int i = 0; i < batch; ++i) numbers.push_back(i == place ? 0 : i < place ? i + 1 : i);
  std::vector<Sequence> sequences;
  for (int i = 0; i < batch; ++i) {
    // The cache has room for one of the whole context, and for shorter ones.
    auto sequence = engine.start_sequence(i == place ? kContext : 512);
    REQUIRE(sequence);
    sequences.push_back(std::move(*sequence));
    // Some of the others come with a context.
    if (numbers[i] % 3 == 2) REQUIRE(engine.fabricate_context(sequences[i], 100 * (numbers[i] % 4)));
  }
  std::vector<float> all;
  for (int step = 0; step < kSteps; ++step) {
    std::vector<std::vector<TokenId>> tokens(batch);
    std::vector<StepRequest> requests;
    for (int i = 0; i < batch; ++i) {
      for (int row = 0; row < rows_of(numbers[i], step); ++row)
        tokens[i].push_back(token_of(numbers[i], sequences[i].length() + row));
      const bool silent = numbers[i] % 4 == 3 && tokens[i].size() > 1;
      requests.push_back({&sequences[i], tokens[i], silent ? LogitRows::kNone : LogitRows::kLast});
    }
    const auto logits = engine.step(requests);
    REQUIRE_MESSAGE(logits, (logits ? "" : logits.error().message));
    REQUIRE((*logits)[place].rows() == 1);
    const std::span<const float> row = (*logits)[place][0];
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

void check_same_bits(const std::vector<float>& expected, const std::vector<float>& found) {
  REQUIRE(found.size() == expected.size());
  CHECK(std::memcmp(found.data(), expected.data(), expected.size() * sizeof(float)) == 0);
}

kernels::Isa needs_of(std::string_view gemm, kernels::Profile profile) {
  for (const kernels::GemmKernel& row : kernels::gemm_kernels())
    if (row.name == gemm && row.profile == profile) return row.needs;
  FAIL("no kernel " << gemm);
  return {};
}

void check_profile(const char* numerics, kernels::Profile profile, std::span<const char* const> gemms) {
  std::vector<float> expected;
  for (const char* gemm : gemms) {
    CAPTURE(gemm);
    if (std::string_view(gemm) != "auto" &&
        !kernels::runs_here(format("{} ({})", gemm, numerics), needs_of(gemm, profile)))
      continue;
    for (const int threads : {1, 2, 3}) {
      CAPTURE(threads);
      const auto engine = engine_for(numerics, gemm, threads);
      if (expected.empty()) expected = watched_logits(*engine, 1, 0);
      check_same_bits(expected, watched_logits(*engine, 1, 0));
      for (const int batch : kBatches) {
        CAPTURE(batch);
        check_same_bits(expected, watched_logits(*engine, batch, batch / 2));
      }
      check_same_bits(expected, watched_logits(*engine, 7, 6));
    }
  }
}

}  // namespace

TEST_CASE("numerics dp: a request alone and among others") {
  constexpr const char* kGemms[] = {"auto", "portable", "avx512-fma", "avx512-dp"};
  check_profile("dp", kernels::Profile::kDp, kGemms);
}

TEST_CASE("numerics amx: a request alone and among others") {
  constexpr const char* kGemms[] = {"auto", "avx512-fma", "amx-tile"};
  check_profile("amx", kernels::Profile::kAmx, kGemms);
}

TEST_CASE("on any nodes and with any placement: a request alone and among others") {
  // Heads on one node each, heads on several nodes, and numbers that do not divide.
  if (std::size(kSimulatedNodes) == 1) MESSAGE("SKIPPED under a sanitizer: all nodes but 3, and 32 requests there");
  for (const int kv_heads : {2, 4}) {
    EngineOptions options;
    options.synthetic = small_model(2048, 2, kv_heads);
    options.context_tokens = kContext;
    options.sequences = 32;
    options.kv_tokens = 32 * 512 + kContext;
    options.chunk_tokens = kContext;
    options.threads = 1;
    const std::vector<float> expected = watched_logits(*loaded_engine(options), 1, 0);
    for (const int nodes : kSimulatedNodes) {
      for (const bool whole : {false, true}) {
        CAPTURE(kv_heads);
        CAPTURE(nodes);
        CAPTURE(whole);
        options.machine.simulated_nodes = nodes;
        options.threads = nodes + 2;
        options.whole_experts = whole;
        const auto engine = loaded_engine(options);
        check_same_bits(expected, watched_logits(*engine, 1, 0));
        check_same_bits(expected, watched_logits(*engine, 7, 3));
        if (nodes == 3 && std::size(kSimulatedNodes) > 1) check_same_bits(expected, watched_logits(*engine, 32, 20));
      }
    }
  }
}

TEST_CASE("sequences of a step equal those of append") {
  const auto engine = engine_for("auto", "auto", 2);
  std::vector<float> expected;
  {
    auto sequence = engine->start_sequence(kContext);
    REQUIRE(sequence);
    for (int step = 0; step < kSteps; ++step) {
      std::vector<TokenId> tokens;
      for (int row = 0; row < rows_of(0, step); ++row) tokens.push_back(token_of(0, sequence->length() + row));
      AppendOptions append;
      append.logits = [&](int64_t, std::span<const std::span<const float>> logits) {
        expected.insert(expected.end(), logits[0].begin(), logits[0].end());
      };
      REQUIRE(engine->append(*sequence, tokens, append));
    }
  }
  check_same_bits(expected, watched_logits(*engine, 5, 2));
}
