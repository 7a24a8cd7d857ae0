#include "numa/barrier.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "base/format.h"

using cpuinfer::format;
using cpuinfer::numa::Barrier;

namespace {

struct alignas(64) Slot {
  int64_t value = 0;  // plain on purpose: only the barrier orders it (ThreadSanitizer checks that)
  bool last = false;
};

struct Meeting {
  int64_t rounds = 0;
  int64_t wrong_reads = 0;
  double us_per_barrier = 0;
};

/// `count` threads meet up to `rounds` times, fewer if that takes longer than 4 seconds. Before each meeting a thread
/// writes its slot; after it, it reads all others. Two sets of slots, so that the writes of the next round do not meet
/// the reads of this one.
Meeting meet(int count, int64_t rounds, int spins) {
  using Clock = std::chrono::steady_clock;
  Barrier barrier(count, spins);
  std::vector<Slot> slots(static_cast<size_t>(2 * count));
  std::vector<Slot> wrong(static_cast<size_t>(count));
  Meeting meeting;
  const auto start = Clock::now();
  std::vector<std::thread> threads;
  for (int rank = 0; rank < count; ++rank) {
    threads.emplace_back([&, rank] {
      for (int64_t round = 1;; ++round) {
        Slot* const set = slots.data() + (round & 1) * count;
        set[rank].value = round * 1000 + rank;
        if (rank == 0) set[0].last = round == rounds || Clock::now() - start > std::chrono::seconds(4);
        barrier.wait(rank);
        for (int other = 0; other < count; ++other) wrong[rank].value += set[other].value != round * 1000 + other;
        if (!set[0].last) continue;
        if (rank == 0) meeting.rounds = round;
        break;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::chrono::duration<double, std::micro> elapsed = Clock::now() - start;
  meeting.us_per_barrier = elapsed.count() / static_cast<double>(meeting.rounds);
  for (const Slot& slot : wrong) meeting.wrong_reads += slot.value;
  return meeting;
}

}  // namespace

constexpr int64_t kRounds = 100'000;

TEST_CASE("what was written before the barrier is read after it, with more threads than CPUs too") {
  for (int count : {1, 2, 3, 5, 8, 17}) {
    const bool enough_cpus = count <= static_cast<int>(std::thread::hardware_concurrency());
    const Meeting meeting = meet(count, kRounds, enough_cpus ? 500 : 10);
    CHECK(meeting.wrong_reads == 0);
    CHECK(meeting.rounds >= 100);
    MESSAGE(format("{} threads: {} barriers, {:.2f} us each", count, meeting.rounds, meeting.us_per_barrier));
  }
}

TEST_CASE("every way of waiting works: without spins most waits yield or sleep") {
  CHECK(meet(3, kRounds, 0).wrong_reads == 0);
  CHECK(meet(21, kRounds, 0).wrong_reads == 0);
}

TEST_CASE("barriers of nodes below one of the machine: all meet, and a node can meet alone") {
  // 3 nodes of 1, 4 and 6 workers. A round of the machine is followed by one of the node; what a node's workers count
  // between is read by that node only.
  const std::vector<int> sizes = {1, 4, 6};
  Barrier machine(static_cast<int>(sizes.size()), 10);
  std::vector<std::unique_ptr<Barrier>> nodes;
  for (const int size : sizes) nodes.push_back(std::make_unique<Barrier>(size, 10));
  constexpr int kTimes = 2000;
  std::vector<Slot> everyone(11), in_node(11);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int node = 0, first = 0; node < 3; first += sizes[node++]) {
    for (int rank = 0; rank < sizes[node]; ++rank) {
      threads.emplace_back([&, node, rank, first, size = sizes[node]] {
        const int self = first + rank;
        for (int round = 1; round <= kTimes; ++round) {
          everyone[self].value = round;
          nodes[node]->wait(rank, &machine, node);
          for (const Slot& slot : everyone) wrong += slot.value != round;
          in_node[self].value = round;
          nodes[node]->wait(rank);
          for (int other = first; other < first + size; ++other) wrong += in_node[other].value != round;
          nodes[node]->wait(rank, &machine, node);
        }
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
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
