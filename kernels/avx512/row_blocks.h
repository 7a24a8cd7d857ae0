// The loops around the inner product that gemm_fma.cc and gemm_dp.cc share.
//
// Units are taken in groups whose weights stay in L2. For each group, the rows of a are taken in blocks of at most
// Order::kMaxRows, cut evenly; for each block, K is taken in pieces whose rows of a, in the form that the inner product
// wants (Order::Term), fit in kTermsBytes of stack; for each piece, the units of the group run Order::units(rows) side
// by side. Partial sums wait in a stack buffer between pieces: a float32 stored and loaded keeps its bits, so neither
// the pieces nor the blocks can be seen in the result. With few rows there is one block and one piece: the weights
// stream once, unit after unit, and sums go from registers to c.
//
// The anonymous namespace is on purpose: the two files that include this are compiled for different instruction sets,
// and the linker must never take code of one for the other.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/kernels.h"

namespace cpuinfer::kernels {
namespace {

constexpr int kLineElements = 32;       // bf16 of one 64-byte line: a k pair for 16 outputs
constexpr int kTileElements = 16 * 32;  // 16 lines: 32 terms of one unit
constexpr int kTileLines = 16;          // k pairs of a tile
constexpr int kTermsBytes = 16 << 10;   // a third of L1
constexpr int kGroupUnits = 16;
constexpr int64_t kGroupElements = (512 << 10) / 2;  // a quarter of L2

/// Prefetch distance in tiles (KiB) of each stream; found by trial on Zen 4. Prefetches go to L2: further ahead than L1
/// can hold beside the terms of a, and from there the hardware's own prefetcher takes over.
constexpr int tiles_ahead(int rows) { return rows <= 4 ? 1 : rows <= 6 ? 2 : 4; }
/// Short units (keys and values) are no streams of their own, but all of them together are one: what comes next lies
/// behind the units side by side.
constexpr int64_t kShortUnitElements = (8 << 10) / 2;
constexpr int kOneStreamTilesAhead = 16;
/// From this many rows on a block is bound by arithmetic.
constexpr int kManyRows = 8;

/// A piece of K for units that run side by side.
struct Piece {
  const bf16* w;        ///< first line of the first unit
  int64_t unit_stride;  ///< elements between units
  const bf16* next;     ///< what the first unit will read next, for prefetching only; may lie behind the weights
  int tiles;
  const char* rows_ahead;  ///< a row of a that the next block of rows will read, or nullptr
};

/// Asks for a part of a row of a that the next block needs, at each tile: rows lie apart, which hardware prefetchers do
/// not follow, and with many rows they come from beyond L2. A product asks for 256 bytes per tile of its own piece of
/// K: all of a row up to four pieces, and the first part of longer ones.
[[gnu::always_inline]] inline void prefetch_rows(const Piece& piece, int tile) {
  if (piece.rows_ahead == nullptr) return;
  constexpr int kLinesPerTile = 4;
#pragma GCC unroll 4
  for (int i = 0; i < kLinesPerTile; ++i) _mm_prefetch(piece.rows_ahead + (tile * kLinesPerTile + i) * 64, _MM_HINT_T1);
}

/// Prefetches for one tile of kUnits units side by side. Addresses are computed as integers: they may be nowhere.
template <int kRows, int kUnits, bool kOneStream>
struct TilePrefetch {
  const char* ahead[kUnits];

  [[gnu::always_inline]] inline TilePrefetch(const Piece& piece, int tile) {
    const int target = kOneStream ? tile + kOneStreamTilesAhead : tile + tiles_ahead(kRows);
    const bool here = kOneStream || target < piece.tiles;
    const bf16* const base = here ? piece.w : piece.next;
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; ++u) {
      const int64_t elements = u * piece.unit_stride + int64_t{here ? target : target - piece.tiles} * kTileElements;
      ahead[u] =
          reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(elements * 2));
    }
  }
  /// The line of unit `unit` that belongs to line `line` of this tile.
  [[gnu::always_inline]] inline void line(int unit, int line) const {
    _mm_prefetch(ahead[unit] + line * 64, _MM_HINT_T1);
  }
};

[[gnu::always_inline]] inline int64_t row_of(const Gemm& g, int row) { return g.a_rows ? g.a_rows[row] : row; }

/// Where the sums of kRows rows of units side by side come from and go to. Sum (unit u, row r) waits at
/// waiting + (u * kRows + r) * 16.
struct Sums {
  float* waiting;
  bool first;       ///< they start from zero
  bool last;        ///< they go to c
  bool accumulate;  ///< c += sums instead of c = sums
  float* c;         ///< of row 0 and unit 0
  int64_t c_stride;
  int64_t c_unit_stride;
};

/// A sum of a piece that begins.
[[gnu::always_inline]] inline __m512 begin_sum(const Sums& sums, int index) {
  return sums.first ? _mm512_setzero_ps() : _mm512_load_ps(sums.waiting + index * 16);
}

/// A sum of a piece that ends.
template <int kRows>
[[gnu::always_inline]] inline void end_sum(const Sums& sums, int unit, int row, __m512 sum) {
  if (!sums.last) {
    _mm512_store_ps(sums.waiting + (unit * kRows + row) * 16, sum);
    return;
  }
  float* const c = sums.c + row * sums.c_stride + unit * sums.c_unit_stride;
  if (sums.accumulate) sum = _mm512_add_ps(_mm512_load_ps(c), sum);
  _mm512_store_ps(c, sum);
}

/// Rows row0..row0+kRows of units unit0..unit0+units. `next` is what will be read after them.
template <typename Order, int kRows>
[[gnu::noinline]] void row_block(const Gemm& g, int row0, int unit0, int units, const bf16* next) {
  using Term = typename Order::Term;
  constexpr int kSideBySide = Order::units(kRows);
  constexpr int kRowTerms = kTermsBytes / (kRows * static_cast<int>(sizeof(Term))) / 32 * 32;
  // A line more than the terms: at a power of two all rows would share a few sets of L1.
  constexpr int kStride = kRowTerms + 64 / static_cast<int>(sizeof(Term));
  alignas(64) Term a[kRows * kStride];
  alignas(64) float waiting[kGroupUnits * kRows * 16];
  const bf16* const w = g.w + unit0 * g.w_unit_stride;

  // Each of the streams side by side runs through `rounds` neighbouring units: long streams suit the prefetchers. A
  // unit alone has too few chains to keep the multipliers busy, so what is left over is taken in pairs; and so are
  // short units when there are rows enough, in the order of their addresses.
  constexpr bool kMayBeShort = kRows >= 5 && kSideBySide >= 2;
  const bool short_units = kMayBeShort && g.w_unit_stride <= kShortUnitElements;
  int rounds = short_units ? 0 : units / kSideBySide;
  if (kSideBySide == 3 && rounds > 0 && units - rounds * kSideBySide == 1) --rounds;
  const int side_by_side = rounds * kSideBySide;

  // One row of the next block for each product of units side by side, as long as there are such rows.
  int next_row = row0 + kRows;
  const auto row_ahead = [&]() -> const char* {
    if (kRows < kManyRows || next_row >= g.m || next_row >= row0 + 2 * kRows + 1) return nullptr;
    return reinterpret_cast<const char*>(g.a + row_of(g, next_row++) * g.a_stride);
  };

  for (int k0 = 0; k0 < g.k; k0 += kRowTerms) {
    const int terms = g.k - k0 < kRowTerms ? g.k - k0 : kRowTerms;
    const bool last = k0 + terms == g.k;
    for (int r = 0; r < kRows; ++r)
      Order::load_terms(g.a + row_of(g, row0 + r) * g.a_stride + k0, terms, a + r * kStride);

    const bf16* const piece_w = w + int64_t{k0} * 16;
    const bf16* const after_group = last ? next : piece_w + int64_t{terms} * 16;
    // Unit `at` and those `spacing` apart after it; `following` is what the first of these streams reads next.
    int done = 0;
    const auto multiply = [&]<int kTogether, bool kOneStream>(int at, int spacing, const bf16* following)
                              __attribute__((always_inline)) {
                                const Piece piece = {.w = piece_w + at * g.w_unit_stride,
                                                     .unit_stride = spacing * g.w_unit_stride,
                                                     .next = following,
                                                     .tiles = terms / 32,
                                                     .rows_ahead = row_ahead()};
                                const Sums sums = {.waiting = waiting + done * kRows * 16,
                                                   .first = k0 == 0,
                                                   .last = last,
                                                   .accumulate = g.accumulate,
                                                   .c = g.c + row0 * g.c_stride + (unit0 + at) * 16,
                                                   .c_stride = g.c_stride,
                                                   .c_unit_stride = int64_t{spacing} * 16};
                                Order::template multiply<kRows, kTogether, kStride, kOneStream>(a, piece, sums);
                                done += kTogether;
                              };
    const auto unit_or = [&](int unit, const bf16* behind) {
      return unit < units ? piece_w + unit * g.w_unit_stride : behind;
    };
    for (int i = 0; i < rounds; ++i) {
      multiply.template operator()<kSideBySide, false>(i, rounds,
                                                       unit_or(i + 1 < rounds ? i + 1 : side_by_side, after_group));
    }
    if constexpr (kMayBeShort) {
      while (short_units && units - done >= 2) multiply.template operator()<2, true>(done, 1, nullptr);
    }
    while (units - done >= 2) multiply.template operator()<2, false>(done, 1, unit_or(done + 2, after_group));
    if (done < units) multiply.template operator()<1, false>(done, 1, after_group);
  }
}

template <typename Order>
[[gnu::always_inline]] inline void gemm_by_row_blocks(const Gemm& g) {
  const int units = g.n / 16;
  const int blocks = (g.m + Order::kMaxRows - 1) / Order::kMaxRows;
  int group = kGroupUnits;
  // A group of one row block streams through the caches anyway.
  while (blocks > 1 && group > 4 && group * int64_t{g.k} * 16 > kGroupElements) group /= 2;

  for (int unit0 = 0; unit0 < units; unit0 += group) {
    const int count = units - unit0 < group ? units - unit0 : group;
    for (int block = 0; block < blocks; ++block) {
      const int row0 = static_cast<int>(int64_t{g.m} * block / blocks);
      const int rows = static_cast<int>(int64_t{g.m} * (block + 1) / blocks) - row0;
      const bool last = block + 1 == blocks && unit0 + count == units;
      const bf16* const behind = g.w + (block + 1 < blocks ? unit0 : unit0 + count) * g.w_unit_stride;
      const bf16* const next = last && g.next_w != nullptr ? g.next_w : behind;
      switch (rows) {
        case 1: row_block<Order, 1>(g, row0, unit0, count, next); break;
        case 2: row_block<Order, 2>(g, row0, unit0, count, next); break;
        case 3: row_block<Order, 3>(g, row0, unit0, count, next); break;
        case 4: row_block<Order, 4>(g, row0, unit0, count, next); break;
        case 5: row_block<Order, 5>(g, row0, unit0, count, next); break;
        case 6: row_block<Order, 6>(g, row0, unit0, count, next); break;
        case 7: row_block<Order, 7>(g, row0, unit0, count, next); break;
        case 8: row_block<Order, 8>(g, row0, unit0, count, next); break;
        case 9: row_block<Order, 9>(g, row0, unit0, count, next); break;
        case 10: row_block<Order, 10>(g, row0, unit0, count, next); break;
        case 11: row_block<Order, 11>(g, row0, unit0, count, next); break;
        case 12: row_block<Order, 12>(g, row0, unit0, count, next); break;
        case 13: row_block<Order, 13>(g, row0, unit0, count, next); break;
        default: row_block<Order, 14>(g, row0, unit0, count, next); break;
      }
    }
  }
}

}  // namespace
}  // namespace cpuinfer::kernels
