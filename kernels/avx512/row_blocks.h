// The loops around the inner product that gemm_fma.cc and gemm_dp.cc share.
//
// Units are taken in groups whose weights stay in L2. For each group, the rows of a are taken in blocks of at most
// Order::kMaxRows, cut evenly; for each block, K is taken in pieces whose rows of a, in the form that the inner product
// wants (Order::Term), fit in kTermsBytes of stack; for each piece, the units of the group run Order::units(rows) side
// by side. Partial sums wait in a stack buffer between pieces: a float32 stored and loaded keeps its bits, so neither
// the pieces nor the blocks can be seen in the result. With few rows there is one block and one piece: the weights
// stream once, unit after unit.
//
// The anonymous namespace is on purpose: the two files that include this are compiled for different instruction sets,
// and the linker must never take code of one for the other.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/kernels.h"

namespace cpuinfer::kernels {
namespace {

constexpr int kLineElements = 32;                    // bf16 of one 64-byte line: a k pair for 16 outputs
constexpr int kTileElements = 16 * 32;               // 16 lines: 32 terms of one unit
constexpr int kTileLines = 16;                       // k pairs of a tile
constexpr int kTermsBytes = 16 << 10;                // a third of L1
constexpr int kGroupUnits = 8;                       // multiple of every Order::units()
constexpr int64_t kGroupElements = (512 << 10) / 2;  // a quarter of L2

/// Prefetch distance in tiles (KiB) of each stream: 8 KiB over all units that run side by side.
constexpr int tiles_ahead(int units) { return 8 / units; }

/// A piece of K for units that run side by side.
struct Piece {
  const bf16* w;        ///< first line of the first unit
  int64_t unit_stride;  ///< elements between units
  const bf16* next;     ///< what the first unit will read next, for prefetching only; may lie behind the weights
  int tiles;
};

/// Address `tile` tiles into the piece, or into the one that follows. Computed as an integer: it may be nowhere.
[[gnu::always_inline]] inline const char* tile_ahead(const Piece& piece, int unit, int tile) {
  const bf16* base = tile < piece.tiles ? piece.w : piece.next;
  const int64_t offset =
      unit * piece.unit_stride + int64_t{tile < piece.tiles ? tile : tile - piece.tiles} * kTileElements;
  return reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(offset * 2));
}

[[gnu::always_inline]] inline int64_t row_of(const Gemm& g, int row) { return g.a_rows ? g.a_rows[row] : row; }

/// c[rows][16] of one unit from the partial sums.
template <int kRows>
[[gnu::always_inline]] inline void write_unit(const Gemm& g, int row0, int unit, const float* sums) {
  for (int r = 0; r < kRows; ++r) {
    float* c = g.c + (row0 + r) * g.c_stride + unit * 16;
    __m512 sum = _mm512_load_ps(sums + r * 16);
    if (g.accumulate) sum = _mm512_add_ps(_mm512_load_ps(c), sum);
    _mm512_store_ps(c, sum);
  }
}

/// Rows row0..row0+kRows of units unit0..unit0+units. `next` is what will be read after them.
template <typename Order, int kRows>
[[gnu::noinline]] void row_block(const Gemm& g, int row0, int unit0, int units, const bf16* next) {
  using Term = typename Order::Term;
  constexpr int kSideBySide = Order::units(kRows);
  constexpr int kRowTerms = kTermsBytes / (kRows * static_cast<int>(sizeof(Term))) / 32 * 32;
  alignas(64) Term a[kRows * kRowTerms];
  alignas(64) float sums[kGroupUnits * kRows * 16];
  const bf16* const w = g.w + unit0 * g.w_unit_stride;

  for (int k0 = 0; k0 < g.k; k0 += kRowTerms) {
    const int terms = g.k - k0 < kRowTerms ? g.k - k0 : kRowTerms;
    const bool first = k0 == 0;
    const bool last = k0 + terms == g.k;
    for (int r = 0; r < kRows; ++r)
      Order::load_terms(g.a + row_of(g, row0 + r) * g.a_stride + k0, terms, a + r * kRowTerms);

    const bf16* const piece_w = w + int64_t{k0} * 16;
    const bf16* const after_group = last ? next : piece_w + int64_t{terms} * 16;
    for (int unit = 0; unit < units;) {
      const int together = units - unit >= kSideBySide ? kSideBySide : 1;
      float* const unit_sums = sums + unit * kRows * 16;
      if (first) {
        for (int i = 0; i < together * kRows; ++i) _mm512_store_ps(unit_sums + i * 16, _mm512_setzero_ps());
      }
      const int following = unit + together;
      const Piece piece = {piece_w + unit * g.w_unit_stride, g.w_unit_stride,
                           following < units ? piece_w + following * g.w_unit_stride : after_group, terms / 32};
      if (together == kSideBySide) {
        Order::template multiply<kRows, kSideBySide, kRowTerms>(a, piece, unit_sums);
      } else {
        Order::template multiply<kRows, 1, kRowTerms>(a, piece, unit_sums);
      }
      if (last) {
        for (int i = 0; i < together; ++i) {
          write_unit<kRows>(g, row0, unit0 + unit + i, unit_sums + i * kRows * 16);
        }
      }
      unit = following;
    }
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
      const bf16* const next = g.w + (block + 1 < blocks ? unit0 : unit0 + count) * g.w_unit_stride;
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
