// The one rule that splits items over nodes and workers. The loader and the kernels' callers both use it, so what a
// worker reads is what was placed next to it.
#pragma once

#include <cstdint>
#include <span>

namespace cpuinfer::numa {

/// Items begin, begin + 1, ..., end - 1.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  constexpr int64_t count() const { return end - begin; }
  friend bool operator==(Range, Range) = default;
};

/// The items of `part` when `count` items are cut into `parts` contiguous pieces, in order, without gaps. Sizes differ
/// by at most one; the first `count % parts` pieces are the larger ones; pieces are empty when parts > count.
/// REQUIRES: count >= 0, 0 <= part < parts.
constexpr Range split(int64_t count, int parts, int part) {
  const int64_t size = count / parts;
  const int64_t larger = count % parts;
  const int64_t begin = part * size + (part < larger ? part : larger);
  return {begin, begin + size + (part < larger ? 1 : 0)};
}

/// The same with pieces in proportion to `shares`, each off by less than one item: for nodes of different size. Equal
/// shares give pieces whose sizes differ by at most one. REQUIRES: shares are not negative, one of them is positive,
/// count times their sum fits int64_t.
constexpr Range split(int64_t count, std::span<const int64_t> shares, int part) {
  int64_t before = 0, total = 0;
  for (size_t i = 0; i < shares.size(); ++i) {
    if (static_cast<int>(i) < part) before += shares[i];
    total += shares[i];
  }
  const auto border = [&](int64_t share) { return (2 * count * share + total) / (2 * total); };
  return {border(before), border(before + shares[static_cast<size_t>(part)])};
}

}  // namespace cpuinfer::numa
