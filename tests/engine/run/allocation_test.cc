// Decoding allocates nothing: every operator new of this program is counted.
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <new>

#include "tests/engine/run/synthetic_engine.h"

namespace {
std::atomic<int64_t> allocations{0};

void* allocate(std::size_t bytes, std::size_t alignment) {
  ++allocations;
  const std::size_t size = bytes == 0 ? 1 : bytes;
  void* const memory = alignment <= alignof(std::max_align_t)
                           ? std::malloc(size)
                           : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace

// The other forms of new and delete call these.
void* operator new(std::size_t bytes) { return allocate(bytes, 0); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

using namespace cpuinfer;
using namespace cpuinfer::run;

namespace {

constexpr int64_t kDepth = 256 * 1024 + 200;  // a page ends 56 tokens later
constexpr int kWarmUp = 10;
constexpr int kSteps = 100;

TokenId next_token(int step, int sequence) { return static_cast<TokenId>((step * 31 + sequence * 17) % 199); }

}  // namespace

TEST_CASE("the counter counts") {
  const int64_t before = allocations;
  std::vector<int> numbers(100);
  CHECK(allocations == before + 1);
  CHECK(numbers[99] == 0);
}

TEST_CASE("100 decode steps at 256k tokens of context allocate nothing, at a page's end neither") {
  for (const int threads : {1, 2}) {
    for (const int batch : {1, 4}) {
      CAPTURE(threads);
      CAPTURE(batch);
      EngineOptions options;
      options.synthetic = small_model(512 * 1024);
      options.context_tokens = kDepth + kWarmUp + kSteps;
      options.sequences = batch;
      options.threads = threads;
      const auto engine = loaded_engine(options);
      std::vector<Sequence> sequences;
      for (int s = 0; s < batch; ++s) {
        auto sequence = engine->start_sequence(options.context_tokens);
        REQUIRE(sequence);
        REQUIRE(engine->fabricate_context(*sequence, kDepth));
        sequences.push_back(std::move(*sequence));
      }
      std::vector<StepRequest> requests(batch);
      std::vector<TokenId> tokens(batch);
      int64_t before = 0;
      bool worked = true;
      float sum = 0;
      for (int step = 0; step < kWarmUp + kSteps; ++step) {
        if (step == kWarmUp) before = allocations;
        for (int s = 0; s < batch; ++s) {
          tokens[s] = next_token(step, s);
          requests[s] = {&sequences[s], {&tokens[s], 1}, LogitRows::kLast};
        }
        const auto logits = engine->step(requests);
        worked = worked && logits;
        if (logits) sum += (*logits)[batch - 1][0][0];
      }
      CHECK(allocations - before == 0);
      CHECK(worked);
      CHECK(std::isfinite(sum));
      CHECK(sequences[0].length() == kDepth + kWarmUp + kSteps);
    }
  }
}

TEST_CASE("decoding by append allocates nothing") {
  EngineOptions options;
  options.synthetic = small_model(4096);
  options.context_tokens = 1024;
  const auto engine = loaded_engine(options);
  auto sequence = engine->start_sequence(1024);
  REQUIRE(sequence);
  float sum = 0;
  AppendOptions append;
  append.logits = [&sum](int64_t, std::span<const std::span<const float>> logits) { sum += logits[0][0]; };
  int64_t before = 0;
  bool worked = true;
  for (int step = 0; step < kWarmUp + 300; ++step) {
    if (step == kWarmUp) before = allocations;
    const TokenId token = next_token(step, 0);
    worked = worked && engine->append(*sequence, {&token, 1}, append);
  }
  CHECK(allocations - before == 0);
  CHECK(worked);
  CHECK(std::isfinite(sum));
}
