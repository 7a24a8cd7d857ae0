// A barrier for a fixed set of workers that is cheap when they are busy and polite when they are not.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace cpuinfer::numa {

/// wait(rank) returns when all `count` workers have called it; what any of them wrote before is visible to all after.
/// Reusable at once, any number of times. Each rank must be one thread at a time.
///
/// Arrivals climb a tree of fan-in 4 over the ranks and the release comes down the same tree. Every flag is a
/// monotonic epoch on its own cache line with one writer, so there is no read-modify-write and no line that all fight
/// for. A waiter spins, then yields the CPU, then sleeps: workers may outnumber CPUs.
///
/// Barriers stack: the workers of a node meet in theirs, and between their arrival and their release its rank 0 waits
/// in the barrier above, where every node is one rank. So all workers meet, and one line per node crosses to another.
class Barrier {
 public:
  /// `spins`: pauses before the first yield; few when workers outnumber CPUs. REQUIRES: count >= 1.
  Barrier(int count, int spins);
  void wait(int rank) noexcept { wait(rank, nullptr, 0); }
  /// Waits for the ranks of this barrier and for all that wait through the other barriers below `above`, where this one
  /// is rank `rank_above`. nullptr: there is nothing above.
  void wait(int rank, Barrier* above, int rank_above) noexcept;
  int count() const { return count_; }

 private:
  struct alignas(64) Flag {
    std::atomic<uint32_t> epoch{0};
  };
  struct alignas(64) Place {
    Flag arrived;        ///< written by this rank
    Flag released;       ///< written by the parent
    uint32_t epoch = 0;  ///< barriers this rank has entered
  };

  void await(Flag& flag, uint32_t epoch) noexcept;
  static void raise(Flag& flag, uint32_t epoch) noexcept;

  int count_;
  int spins_;
  std::unique_ptr<Place[]> places_;
};

}  // namespace cpuinfer::numa
