#include "numa/work_ranges.h"

#include <doctest/doctest.h>

#include <thread>
#include <vector>

#include "numa/barrier.h"

using namespace cpuinfer::numa;

TEST_CASE("pieces are halves of what is left, within their limits, from the front") {
  WorkRanges ranges(1);
  ranges.deal(0, {100, 164});
  CHECK(ranges.take(0, 0, 1, 4, 16) == Range{100, 116});
  CHECK(ranges.take(0, 0, 1, 4, 100) == Range{116, 140});
  CHECK(ranges.take(0, 0, 1, 4, 16) == Range{140, 152});
  CHECK(ranges.take(0, 0, 1, 4, 16) == Range{152, 158});
  CHECK(ranges.take(0, 0, 1, 4, 16) == Range{158, 162});
  CHECK(ranges.take(0, 0, 1, 4, 16) == Range{162, 164});
  CHECK(ranges.take(0, 0, 1, 4, 16).count() == 0);
}

TEST_CASE("a worker without work takes from the ends of its neighbours, and of no others") {
  WorkRanges ranges(4);  // two nodes of two workers
  ranges.deal(0, {0, 8});
  ranges.deal(1, {8, 8});
  ranges.deal(3, {8, 16});
  CHECK(ranges.take(1, 0, 2, 2, 4) == Range{4, 8});
  CHECK(ranges.take(0, 0, 2, 2, 4) == Range{0, 2});
  CHECK(ranges.take(1, 0, 2, 2, 4) == Range{2, 4});
  CHECK(ranges.take(1, 0, 2, 2, 4).count() == 0);
  CHECK(ranges.take(0, 0, 2, 2, 4).count() == 0);
  CHECK(ranges.take(2, 2, 2, 1, 1) == Range{15, 16});
}

TEST_CASE("every item is taken exactly once, phase after phase, by workers of any speed") {
  constexpr int kWorkers = 3, kPhases = 2000, kItems = 97;
  WorkRanges ranges(kWorkers);
  Barrier barrier(kWorkers, 100);
  std::vector<int> taken(kItems);  // plain on purpose: each item has one taker between two barriers
  int wrong = 0;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kWorkers; ++rank) {
    threads.emplace_back([&, rank] {
      for (int phase = 0; phase < kPhases; ++phase) {
        if (phase % kWorkers != rank) ranges.deal(rank, split(kItems, kWorkers, rank));
        // One of them is late: the others find its range empty, or full when they come back.
        if (phase % kWorkers == rank) {
          std::this_thread::yield();
          ranges.deal(rank, split(kItems, kWorkers, rank));
        }
        for (Range piece = ranges.take(rank, 0, kWorkers, 1, 5); piece.count() > 0;
             piece = ranges.take(rank, 0, kWorkers, 1, 5)) {
          for (int64_t item = piece.begin; item < piece.end; ++item) ++taken[static_cast<size_t>(item)];
        }
        barrier.wait(rank);
        if (rank == 0)
          for (const int count : taken) wrong += count != phase + 1;
        barrier.wait(rank);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}
