// Inline assembly for the reasons of gemm_tiles.cc.
#include <immintrin.h>

#include "kernels/probe_loops.h"

namespace cpuinfer::kernels {
namespace {

/// What LDTILECFG reads.
struct alignas(64) FullTiles {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(FullTiles) == 64);

}  // namespace

float peak_amx(int64_t iterations) noexcept {
  // Each pair adds 1 * 1 and takes 1 * -1 away: the sums stay where they are.
  alignas(64) uint32_t ones[256];
  alignas(64) uint32_t signs[256];
  alignas(64) float sums[256];
  for (int i = 0; i < 256; ++i) {
    ones[i] = 0x3f803f80u;
    signs[i] = 0xbf803f80u;
  }
  const FullTiles config;
  const int64_t row_bytes = 64;
  __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
  __asm__ volatile(
      "tileloadd (%0,%2,1), %%tmm4\n\t"
      "tileloadd (%0,%2,1), %%tmm5\n\t"
      "tileloadd (%1,%2,1), %%tmm6\n\t"
      "tileloadd (%1,%2,1), %%tmm7\n\t"
      "tileloadd (%0,%2,1), %%tmm0\n\t"
      "tileloadd (%0,%2,1), %%tmm1\n\t"
      "tileloadd (%0,%2,1), %%tmm2\n\t"
      "tileloadd (%0,%2,1), %%tmm3" ::"r"(ones),
      "r"(signs), "r"(row_bytes)
      : "memory");
  static_assert(kSumsAmx == 4);
  for (int64_t n = 0; n < iterations; ++n)
    __asm__ volatile(
        "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n\t"
        "tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n\t"
        "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n\t"
        "tdpbf16ps %%tmm7, %%tmm5, %%tmm3" ::
            : "memory");
  float sum = 0;
  __asm__ volatile("tilestored %%tmm0, (%0,%1,1)" ::"r"(sums), "r"(row_bytes) : "memory");
  for (const float value : sums) sum += value;
  __asm__ volatile("tilestored %%tmm3, (%0,%1,1)" ::"r"(sums), "r"(row_bytes) : "memory");
  for (const float value : sums) sum += value;
  // gemm_amx_tiles looks at what the tiles hold before it uses them.
  __asm__ volatile("tilerelease" ::: "memory");
  return sum;
}

}  // namespace cpuinfer::kernels
