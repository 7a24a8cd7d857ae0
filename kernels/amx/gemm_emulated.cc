// Tiles emulated as the Intel SDM (vol. 2, LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TDPBF16PS) defines them, so that
// the tile code is tested on CPUs without AMX. What would fault there traps here.
#include <immintrin.h>

#include "kernels/amx/amx.h"
#include "kernels/amx/tile_gemm.h"

namespace cpuinfer::kernels {
namespace {

inline void fault_unless(bool allowed) {
  if (!allowed) __builtin_trap();
}

/// Tile arithmetic rounds to nearest and flushes subnormals whatever MXCSR says.
struct TileRounding {
  TileRounding() : saved(_mm_getcsr()) { _mm_setcsr(0x9fc0); }  // exceptions masked, FTZ, DAZ
  ~TileRounding() { _mm_setcsr(saved); }
  unsigned saved;
};

class EmulatedTiles {
 public:
  void configure(const TileConfig& config) {
    fault_unless(config.palette == 1 && config.start_row == 0);
    for (const uint8_t byte : config.reserved) fault_unless(byte == 0);
    for (int i = 0; i < 16; ++i) {
      if (i >= 8) {
        fault_unless(config.rows[i] == 0 && config.row_bytes[i] == 0);
      } else {
        fault_unless(config.rows[i] <= 16 && config.row_bytes[i] <= 64);
        fault_unless((config.rows[i] == 0) == (config.row_bytes[i] == 0));
      }
    }
    config_ = config;
    __builtin_memset(data_, 0, sizeof(data_));
  }

  template <int kTile>
  void zero() {
    check<kTile>();
    __builtin_memset(data_[kTile], 0, sizeof(data_[kTile]));
  }

  /// Rows and bytes beyond the configured ones become zero.
  template <int kTile>
  void load(const void* base, int64_t row_bytes) {
    zero<kTile>();
    for (int r = 0; r < config_.rows[kTile]; ++r) {
      __builtin_memcpy(data_[kTile][r], static_cast<const char*>(base) + r * row_bytes, config_.row_bytes[kTile]);
    }
  }

  template <int kTile>
  void store(void* base, int64_t row_bytes) {
    check<kTile>();
    for (int r = 0; r < config_.rows[kTile]; ++r) {
      __builtin_memcpy(static_cast<char*>(base) + r * row_bytes, data_[kTile][r], config_.row_bytes[kTile]);
    }
  }

  template <int kSum, int kA, int kW>
  void multiply_add() {
    static_assert(kSum != kA && kA != kW && kSum != kW, "#UD");
    check<kSum>();
    check<kA>();
    check<kW>();
    const int pairs = config_.row_bytes[kA] / 4;
    fault_unless(config_.rows[kSum] == config_.rows[kA]);
    fault_unless(config_.row_bytes[kSum] == config_.row_bytes[kW] && pairs == config_.rows[kW]);
    fault_unless(config_.row_bytes[kSum] % 4 == 0 && config_.row_bytes[kA] % 4 == 0);

    const TileRounding rounding;
    for (int r = 0; r < config_.rows[kSum]; ++r) {
      // Lanes beyond the configured bytes are zero in w: they stay zero in the sums.
      __m256 even[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
      __m256 odd[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
      for (int pair = 0; pair < pairs; ++pair) {
        const __m256i a = _mm256_set1_epi32(static_cast<int>(data_[kA][r][pair]));
        for (int half = 0; half < 2; ++half) {
          const __m256i w = load_lanes(data_[kW][pair] + 8 * half);
          even[half] = _mm256_fmadd_ps(even_term(a), even_term(w), even[half]);
          odd[half] = _mm256_fmadd_ps(odd_term(a), odd_term(w), odd[half]);
        }
      }
      for (int half = 0; half < 2; ++half) {
        uint32_t* const lanes = data_[kSum][r] + 8 * half;
        const __m256 sum = _mm256_castsi256_ps(load_lanes(lanes));
        const __m256i result = _mm256_castps_si256(_mm256_add_ps(sum, _mm256_add_ps(even[half], odd[half])));
        _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), result);
      }
    }
  }

 private:
  static __m256i load_lanes(const uint32_t* lanes) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(lanes));
  }
  static __m256 even_term(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
  static __m256 odd_term(__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }

  template <int kTile>
  void check() const {
    static_assert(kTile >= 0 && kTile < 8, "#UD");
    fault_unless(config_.palette == 1 && config_.rows[kTile] != 0);
  }

  TileConfig config_ = {};
  alignas(64) uint32_t data_[8][16][16];
};

}  // namespace

void gemm_amx_emulated(const Gemm& gemm) noexcept {
  EmulatedTiles tiles;
  gemm_by_tiles(tiles, gemm);
}

}  // namespace cpuinfer::kernels
