#include "numa/barrier.h"

#include <doctest/doctest.h>

#include <chrono>
#include <thread>
#include <vector>

#include "base/format.h"

using cpuinfer::format;
using cpuinfer::numa::Barrier;

namespace {

struct alignas(64) Slot {
  int64_t value = 0;  // plain on purpose: only the barrier orders it (ThreadSanitizer checks that)
};

/// `count` threads meet `rounds` times. Before each meeting a thread writes its slot; after it, it reads all others.
/// Two sets of slots, so that the writes of the next round do not meet the reads of this one. Returns wrong reads.
int64_t meet(int count, int rounds, int spins) {
  Barrier barrier(count, spins);
  std::vector<Slot> slots(static_cast<size_t>(2 * count));
  std::vector<Slot> wrong(static_cast<size_t>(count));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < count; ++rank) {
    threads.emplace_back([&, rank] {
      for (int64_t round = 1; round <= rounds; ++round) {
        Slot* const set = slots.data() + (round & 1) * count;
        set[rank].value = round * 1000 + rank;
        barrier.wait(rank);
        for (int other = 0; other < count; ++other) wrong[rank].value += set[other].value != round * 1000 + other;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  int64_t total = 0;
  for (const Slot& slot : wrong) total += slot.value;
  return total;
}

}  // namespace

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kRounds = 5'000;  // a sanitizer costs a factor of 10
#else
constexpr int kRounds = 100'000;
#endif

TEST_CASE("what was written before the barrier is read after it, with more threads than CPUs too") {
  for (int count : {1, 2, 3, 5, 8, 17}) {
    const auto start = std::chrono::steady_clock::now();
    const bool enough_cpus = count <= static_cast<int>(std::thread::hardware_concurrency());
    CHECK(meet(count, kRounds, enough_cpus ? 500 : 10) == 0);
    const std::chrono::duration<double, std::micro> elapsed = std::chrono::steady_clock::now() - start;
    MESSAGE(format("{} threads: {:.2f} us per barrier", count, elapsed.count() / kRounds));
  }
}

TEST_CASE("every way of waiting works: without spins most waits yield or sleep") {
  CHECK(meet(3, kRounds, 0) == 0);
  CHECK(meet(21, kRounds / 10, 0) == 0);
}

TEST_CASE("late workers find the others asleep and wake them") {
  Barrier barrier(6, 10);
  std::vector<int> data(6, 0);
  std::vector<int> sums(6, 0);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 6; ++rank) {
    threads.emplace_back([&, rank] {
      for (int round = 0; round < 12; ++round) {
        // Each rank is the late one twice: the root, inner places of the tree and leaves.
        if (round % 6 == rank) std::this_thread::sleep_for(std::chrono::milliseconds(15));
        data[rank] = round;
        barrier.wait(rank);
        for (int other : data) sums[rank] += other;
        barrier.wait(rank);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int sum : sums) CHECK(sum == 6 * (11 * 12 / 2));
}
