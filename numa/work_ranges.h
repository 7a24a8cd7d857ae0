// Shares of a phase's items that grow and shrink with the speed of the workers.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "numa/shard.h"

namespace cpuinfer::numa {

/// One range of items per worker. Each worker deals itself a range when a phase begins, takes pieces from its front,
/// and when it is empty takes pieces from the ends of its neighbours' ranges: a worker that is slow for a while
/// (another program on its core, a farther memory) costs the others a piece, not the
/// difference; unless it is late to begin, since a range that is not dealt yet cannot be taken from. Pieces shrink
/// towards the end.
///
/// Every item is taken exactly once. Phases that use this are separated by barriers; a range not dealt yet is empty.
/// Lock-free; one word per worker on its own cache line, touched by others only when they have run out of work.
class WorkRanges {
 public:
  explicit WorkRanges(int workers) : ranges_(std::make_unique<Word[]>(static_cast<size_t>(workers))) {}

  /// Called by worker `rank` itself. REQUIRES: its range is empty; 0 <= begin <= end < 2^32.
  void deal(int rank, Range range) noexcept {
    ranges_[static_cast<size_t>(rank)].bits.store(pack(range), std::memory_order_release);
  }

  /// Half of what is left, but at least `least` (if there are so many) and at most `most` items: of the range of
  /// `rank`, or when that is empty, of one of the ranks first..first+count-1. Empty: nothing is left anywhere.
  Range take(int rank, int first, int count, int64_t least, int64_t most) noexcept;

 private:
  struct alignas(64) Word {
    std::atomic<uint64_t> bits{0};
  };
  static uint64_t pack(Range range) {
    return static_cast<uint64_t>(range.begin) | static_cast<uint64_t>(range.end) << 32;
  }
  static Range unpack(uint64_t bits) {
    return {static_cast<int64_t>(bits & 0xffffffffu), static_cast<int64_t>(bits >> 32)};
  }
  enum class End { kFront, kBack };
  Range take_from(Word& word, End end, int64_t least, int64_t most) noexcept;

  std::unique_ptr<Word[]> ranges_;
};

}  // namespace cpuinfer::numa
