#include "numa/work_ranges.h"

#include <algorithm>

namespace cpuinfer::numa {

Range WorkRanges::take_from(Word& word, End end, int64_t least, int64_t most) noexcept {
  uint64_t bits = word.bits.load(std::memory_order_acquire);
  for (;;) {
    const Range left = unpack(bits);
    if (left.count() <= 0) return {};
    const int64_t count = std::min(std::clamp(left.count() / 2, least, most), left.count());
    const Range piece = end == End::kFront ? Range{left.begin, left.begin + count} : Range{left.end - count, left.end};
    const Range rest = end == End::kFront ? Range{piece.end, left.end} : Range{left.begin, piece.begin};
    if (word.bits.compare_exchange_weak(bits, pack(rest), std::memory_order_acq_rel, std::memory_order_acquire))
      return piece;
  }
}

Range WorkRanges::take(int rank, int first, int count, int64_t least, int64_t most) noexcept {
  const Range own = take_from(ranges_[static_cast<size_t>(rank)], End::kFront, least, most);
  if (own.count() > 0) return own;
  for (int i = 1; i < count; ++i) {
    const int victim = first + (rank - first + i) % count;
    const Range stolen = take_from(ranges_[static_cast<size_t>(victim)], End::kBack, least, most);
    if (stolen.count() > 0) return stolen;
  }
  return {};
}

}  // namespace cpuinfer::numa
