// The tiles of the CPU. Inline assembly and not the intrinsics of <amxintrin.h>: g++ 12's do not tell the compiler that
// tile loads read memory, and that LDTILECFG reads 64 bytes of it, so stores before them may be moved or dropped. (See
// also GCC bug 122446.) Every statement here is volatile and clobbers memory; tile numbers are immediates.
#include <immintrin.h>

#include "kernels/amx/amx.h"
#include "kernels/amx/tile_gemm.h"

namespace cpuinfer::kernels {
namespace {

struct CpuTiles {
  /// Asks the CPU what it holds, because nobody else knows: other code on this thread may have released the tiles or
  /// configured its own. STTILECFG takes 17 ns, LDTILECFG 135 ns (Sapphire Rapids, 2.6 GHz).
  void configure(const TileConfig& wanted) {
    alignas(64) TileConfig held;
    __asm__ volatile("sttilecfg %0" : "=m"(held)::"memory");
    const __m512i difference = _mm512_xor_si512(_mm512_load_si512(&held), _mm512_load_si512(&wanted));
    if (_mm512_test_epi32_mask(difference, difference) == 0) return;
    __asm__ volatile("ldtilecfg %0" ::"m"(wanted) : "memory");
  }
  template <int kTile>
  void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile) : "memory");
  }
  template <int kTile>
  void load(const void* base, int64_t row_bytes) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(base), "r"(row_bytes), "i"(kTile) : "memory");
  }
  template <int kTile>
  void store(void* base, int64_t row_bytes) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(base), "r"(row_bytes), "i"(kTile) : "memory");
  }
  template <int kSum, int kA, int kW>
  void multiply_add() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kW) : "memory");
  }
};

}  // namespace

void gemm_amx_tiles(const Gemm& gemm) noexcept {
  CpuTiles tiles;
  gemm_by_tiles(tiles, gemm);
}

}  // namespace cpuinfer::kernels
