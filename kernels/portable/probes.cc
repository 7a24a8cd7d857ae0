#include <immintrin.h>

#include "kernels/probe_loops.h"
#include "kernels/read_loop.h"

namespace cpuinfer::kernels {
namespace {

struct Lines256 {
  __m256i sums[kLinesPerTurn] = {};

  template <int kStreams>
  [[gnu::always_inline]] inline void fold(int line, int stream, const std::byte* here) {
    __m256i& sum = sums[line * kStreams + stream];
    const __m256i* halves = reinterpret_cast<const __m256i*>(here);
    sum = _mm256_xor_si256(sum, _mm256_load_si256(halves));
    sum = _mm256_xor_si256(sum, _mm256_load_si256(halves + 1));
  }
  uint64_t result() const {
    __m256i sum = sums[0];
    for (int i = 1; i < kLinesPerTurn; ++i) sum = _mm256_xor_si256(sum, sums[i]);
    alignas(32) uint64_t words[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), sum);
    return words[0] ^ words[1] ^ words[2] ^ words[3];
  }
};

}  // namespace

uint64_t read_avx2(const std::byte* data, int64_t bytes, const ReadPattern& pattern) noexcept {
  return read_pattern<Lines256>(data, bytes, pattern);
}

float peak_fma_avx2(int64_t iterations) noexcept {
  // As in avx512/probes.cc.
  __m256 half = _mm256_set1_ps(0.5f);
  __m256 one = _mm256_set1_ps(1.0f);
  __asm__("" : "+x"(half), "+x"(one));
  __m256 sums[kSumsAvx2];
#pragma GCC unroll 12
  for (int i = 0; i < kSumsAvx2; ++i) sums[i] = _mm256_set1_ps(1.0f + static_cast<float>(i) / 16);
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < kSumsAvx2; ++i) sums[i] = _mm256_fmadd_ps(sums[i], half, one);
  }
  __m256 all = sums[0];
#pragma GCC unroll 12
  for (int i = 1; i < kSumsAvx2; ++i) all = _mm256_add_ps(all, sums[i]);
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, all);
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

}  // namespace cpuinfer::kernels
