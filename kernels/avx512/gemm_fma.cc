// Matrix product by widening: a 64-byte line of weights (a k pair for 16 outputs) becomes two vectors of 16 float32 by
// a shift (even terms) and a mask (odd terms), each multiplied by a broadcast float32 of a. Products of two bf16 are
// exact in float32, so a chain of fused multiply-adds gives the bits of VDPBF16PS or TDPBF16PS, depending on its order.
#include "kernels/avx512/avx512.h"
#include "kernels/avx512/row_blocks.h"

namespace cpuinfer::kernels {
namespace {

[[gnu::always_inline]] inline __m512 even_terms(const bf16* line) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_load_si512(line), 16));
}
// A masked load and not a mask of the loaded line: the compiler then needs no register for the line or for the mask.
[[gnu::always_inline]] inline __m512 odd_terms(const bf16* line) {
  return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(0xaaaaaaaau, line));
}

/// What both orders have in common: a in float32.
struct Widening {
  using Term = float;
  static constexpr int kMaxRows = 14;

  [[gnu::always_inline]] static inline void load_terms(const bf16* a, int terms, float* out) {
    for (int i = 0; i < terms; i += 16) {
      const __m256i half = _mm256_load_si256(reinterpret_cast<const __m256i*>(a + i));
      _mm512_store_si512(out + i, _mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
  }
};

struct DpOrder : Widening {
  // One chain per output: with few rows, more units hide the latency of the additions.
  static constexpr int units(int rows) { return rows <= 3 ? 4 : 2; }

  template <int kRows, int kUnits, int kStride, bool kOneStream>
  [[gnu::always_inline]] static inline void multiply(const float* a, const Piece& piece, const Sums& sums) {
    __m512 c[kUnits * kRows];
#pragma GCC unroll 32
    for (int i = 0; i < kUnits * kRows; ++i) c[i] = begin_sum(sums, i);

    const bf16* w = piece.w;
    for (int tile = 0; tile < piece.tiles; ++tile) {
      const TilePrefetch<kRows, kUnits, kOneStream> prefetch(piece, tile);
      prefetch_rows(piece, tile);
#pragma GCC unroll 1
      for (int line = 0; line < kTileLines; ++line) {
        __m512 v[kUnits];
#pragma GCC unroll 4
        for (int u = 0; u < kUnits; ++u) {
          prefetch.line(u, line);
          v[u] = odd_terms(w + u * piece.unit_stride);
        }
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const __m512 term = _mm512_set1_ps(a[r * kStride + 1]);
#pragma GCC unroll 4
          for (int u = 0; u < kUnits; ++u) c[u * kRows + r] = _mm512_fmadd_ps(term, v[u], c[u * kRows + r]);
        }
#pragma GCC unroll 4
        for (int u = 0; u < kUnits; ++u) v[u] = even_terms(w + u * piece.unit_stride);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const __m512 term = _mm512_set1_ps(a[r * kStride]);
#pragma GCC unroll 4
          for (int u = 0; u < kUnits; ++u) c[u * kRows + r] = _mm512_fmadd_ps(term, v[u], c[u * kRows + r]);
        }
        w += kLineElements;
        a += 2;
      }
    }
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; ++u) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) end_sum<kRows>(sums, u, r, c[u * kRows + r]);
    }
  }
};

struct AmxOrder : Widening {
  // Two chains per output.
  static constexpr int units(int rows) { return rows <= 3 ? 4 : rows <= 7 ? 2 : 1; }

  template <int kRows, int kUnits, int kStride, bool kOneStream>
  [[gnu::always_inline]] static inline void multiply(const float* a, const Piece& piece, const Sums& sums) {
    // The two chains of a tile take all registers, so the sums stay in memory (L1) from tile to tile.
    if (sums.first) {
      for (int i = 0; i < kUnits * kRows; ++i) _mm512_store_ps(sums.waiting + i * 16, _mm512_setzero_ps());
    }
    const bf16* w = piece.w;
    for (int tile = 0; tile < piece.tiles; ++tile) {
      const TilePrefetch<kRows, kUnits, kOneStream> prefetch(piece, tile);
      __m512 even[kUnits * kRows];
      __m512 odd[kUnits * kRows];
#pragma GCC unroll 32
      for (int i = 0; i < kUnits * kRows; ++i) even[i] = odd[i] = _mm512_setzero_ps();
      prefetch_rows(piece, tile);
#pragma GCC unroll 1
      for (int line = 0; line < kTileLines; ++line) {
        __m512 v[kUnits];
#pragma GCC unroll 4
        for (int u = 0; u < kUnits; ++u) {
          prefetch.line(u, line);
          v[u] = odd_terms(w + u * piece.unit_stride);
        }
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const __m512 term = _mm512_set1_ps(a[r * kStride + 1]);
#pragma GCC unroll 4
          for (int u = 0; u < kUnits; ++u) odd[u * kRows + r] = _mm512_fmadd_ps(term, v[u], odd[u * kRows + r]);
        }
#pragma GCC unroll 4
        for (int u = 0; u < kUnits; ++u) v[u] = even_terms(w + u * piece.unit_stride);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const __m512 term = _mm512_set1_ps(a[r * kStride]);
#pragma GCC unroll 4
          for (int u = 0; u < kUnits; ++u) even[u * kRows + r] = _mm512_fmadd_ps(term, v[u], even[u * kRows + r]);
        }
        w += kLineElements;
        a += 2;
      }
#pragma GCC unroll 32
      for (int i = 0; i < kUnits * kRows; ++i) {
        const __m512 block = _mm512_add_ps(even[i], odd[i]);
        _mm512_store_ps(sums.waiting + i * 16, _mm512_add_ps(_mm512_load_ps(sums.waiting + i * 16), block));
      }
    }
    if (!sums.last) return;
    for (int u = 0; u < kUnits; ++u) {
      for (int r = 0; r < kRows; ++r) end_sum<kRows>(sums, u, r, _mm512_load_ps(sums.waiting + (u * kRows + r) * 16));
    }
  }
};

}  // namespace

void gemm_avx512_fma_dp(const Gemm& gemm) noexcept { gemm_by_row_blocks<DpOrder>(gemm); }
void gemm_avx512_fma_amx(const Gemm& gemm) noexcept { gemm_by_row_blocks<AmxOrder>(gemm); }

}  // namespace cpuinfer::kernels
