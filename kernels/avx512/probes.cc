#include <immintrin.h>

#include "kernels/probe_loops.h"
#include "kernels/read_loop.h"

namespace cpuinfer::kernels {
namespace {

struct Lines512 {
  __m512i sums[kLinesPerTurn] = {};

  template <int kStreams>
  [[gnu::always_inline]] inline void fold(int line, int stream, const std::byte* here) {
    __m512i& sum = sums[line * kStreams + stream];
    sum = _mm512_xor_si512(sum, _mm512_load_si512(here));
  }
  uint64_t result() const {
    __m512i sum = sums[0];
    for (int i = 1; i < kLinesPerTurn; ++i) sum = _mm512_xor_si512(sum, sums[i]);
    alignas(64) uint64_t words[8];
    _mm512_store_si512(words, sum);
    uint64_t all = 0;
    for (const uint64_t word : words) all ^= word;
    return all;
  }
};

}  // namespace

uint64_t read_avx512(const std::byte* data, int64_t bytes, const ReadPattern& pattern) noexcept {
  return read_pattern<Lines512>(data, bytes, pattern);
}

float peak_fma_avx512(int64_t iterations) noexcept {
  // x = x/2 + 1 tends to 2 from wherever it starts: never subnormal, never infinite. The compiler must not know that.
  __m512 half = _mm512_set1_ps(0.5f);
  __m512 one = _mm512_set1_ps(1.0f);
  __asm__("" : "+v"(half), "+v"(one));
  __m512 sums[kSumsAvx512];
#pragma GCC unroll 24
  for (int i = 0; i < kSumsAvx512; ++i) sums[i] = _mm512_set1_ps(1.0f + static_cast<float>(i) / 16);
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 24
    for (int i = 0; i < kSumsAvx512; ++i) sums[i] = _mm512_fmadd_ps(sums[i], half, one);
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
