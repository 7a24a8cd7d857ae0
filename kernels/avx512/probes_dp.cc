#include <immintrin.h>

#include "kernels/probe_loops.h"

namespace cpuinfer::kernels {

float peak_dp_avx512(int64_t iterations) noexcept {
  // Each pair adds 1 * 1 and takes 1 * -1 away, so that sums stay where they are. The compiler must not know that.
  __m512i ones = _mm512_set1_epi32(0x3f803f80);
  __m512i signs = _mm512_set1_epi32(static_cast<int>(0xbf803f80u));
  __asm__("" : "+v"(ones), "+v"(signs));
  __m512 sums[kSumsAvx512];
#pragma GCC unroll 24
  for (int i = 0; i < kSumsAvx512; ++i) sums[i] = _mm512_set1_ps(1.0f + static_cast<float>(i) / 16);
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 24
    for (int i = 0; i < kSumsAvx512; ++i)
      sums[i] = _mm512_dpbf16_ps(sums[i], reinterpret_cast<__m512bh>(ones), reinterpret_cast<__m512bh>(signs));
  }
  __m512 all = sums[0];
#pragma GCC unroll 24
  for (int i = 1; i < kSumsAvx512; ++i) all = _mm512_add_ps(all, sums[i]);
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, all);
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

}  // namespace cpuinfer::kernels
