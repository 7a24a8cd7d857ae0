// Matrix product by VDPBF16PS. Each output has one chain of these instructions; a pair of a is broadcast as 32 bits.
#include "kernels/avx512/avx512.h"
#include "kernels/avx512/row_blocks.h"

namespace cpuinfer::kernels {
namespace {

struct DotPairs {
  using Term = uint16_t;
  static constexpr int kMaxRows = 14;
  static constexpr int units(int rows) { return rows <= 6 ? 4 : rows <= 9 ? 3 : 2; }

  [[gnu::always_inline]] static inline void load_terms(const bf16* a, int terms, uint16_t* out) {
    for (int i = 0; i < terms; i += 32) _mm512_store_si512(out + i, _mm512_load_si512(a + i));
  }

  template <int kRows, int kUnits, int kStride, bool kOneStream>
  [[gnu::always_inline]] static inline void multiply(const uint16_t* a, const Piece& piece, const Sums& sums) {
    __m512 c[kUnits * kRows];
#pragma GCC unroll 32
    for (int i = 0; i < kUnits * kRows; ++i) c[i] = begin_sum(sums, i);

    const bf16* w = piece.w;
    for (int tile = 0; tile < piece.tiles; ++tile) {
      const TilePrefetch<kRows, kUnits, kOneStream> prefetch(piece, tile);
      prefetch_rows(piece, tile);
#pragma GCC unroll 1
      for (int line = 0; line < kTileLines; ++line) {
        __m512i v[kUnits];
#pragma GCC unroll 4
        for (int u = 0; u < kUnits; ++u) {
          prefetch.line(u, line);
          v[u] = _mm512_load_si512(w + u * piece.unit_stride);
        }
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          int32_t pair;
          __builtin_memcpy(&pair, a + r * kStride, sizeof(pair));
          const __m512i term = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
          for (int u = 0; u < kUnits; ++u) {
            c[u * kRows + r] = _mm512_dpbf16_ps(c[u * kRows + r], (__m512bh)v[u], (__m512bh)term);
          }
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

}  // namespace

void gemm_avx512_dp(const Gemm& gemm) noexcept { gemm_by_row_blocks<DotPairs>(gemm); }

}  // namespace cpuinfer::kernels
