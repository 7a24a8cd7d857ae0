#include "kernels/pack.h"

#include <emmintrin.h>  // SSE2 is part of x86-64

#include <cstring>

namespace cpuinfer::kernels {
namespace {

constexpr int kTilePairs = kTileTerms / 2;
constexpr int kTileElements = kUnitOutputs * kTileTerms;

/// IEEE binary16 to binary32, exactly; by integers, so that FTZ/DAZ cannot touch subnormals.
float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t exponent = half >> 10 & 31u;
  const uint32_t fraction = half & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
  if (fraction == 0) return std::bit_cast<float>(sign);
  // Subnormal: fraction * 2^-24, with its leading one moved to the implicit place.
  const int shift = std::countl_zero(fraction) - 21;  // 10 fraction bits + 1
  return std::bit_cast<float>(sign | static_cast<uint32_t>(113 - shift) << 23 | (fraction << shift & 0x3ffu) << 13);
}

/// Transposes 16 rows of 16 pairs (32-bit words) into 16 lines of 16 outputs: by 4x4 blocks.
void transpose_tile(const bf16* const rows[kUnitOutputs], bf16* tile) {
  for (int pair = 0; pair < kTilePairs; pair += 4) {
    for (int output = 0; output < kUnitOutputs; output += 4) {
      const auto load = [&](int i) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[output + i] + 2 * pair));
      };
      const __m128i r0 = load(0);
      const __m128i r1 = load(1);
      const __m128i r2 = load(2);
      const __m128i r3 = load(3);
      const __m128i low01 = _mm_unpacklo_epi32(r0, r1);
      const __m128i low23 = _mm_unpacklo_epi32(r2, r3);
      const __m128i high01 = _mm_unpackhi_epi32(r0, r1);
      const __m128i high23 = _mm_unpackhi_epi32(r2, r3);
      // Past the caches: nobody reads the unit soon, and the line need not be read to be written.
      const auto store = [&](int i, __m128i line) {
        _mm_stream_si128(reinterpret_cast<__m128i*>(tile + ((pair + i) * kUnitOutputs + output) * 2), line);
      };
      store(0, _mm_unpacklo_epi64(low01, low23));
      store(1, _mm_unpackhi_epi64(low01, low23));
      store(2, _mm_unpacklo_epi64(high01, high23));
      store(3, _mm_unpackhi_epi64(high01, high23));
    }
  }
}

/// `count` elements of `source`, from element `first` on, as bf16.
void convert(const std::byte* source, DType dtype, int first, int count, bf16* out) {
  source += int64_t{first} * dtype_bytes(dtype);
  switch (dtype) {
    case DType::kBF16: std::memcpy(out, source, sizeof(bf16) * static_cast<size_t>(count)); return;
    case DType::kF16:
      for (int i = 0; i < count; ++i) {
        uint16_t half;
        std::memcpy(&half, source + 2 * i, 2);
        out[i] = to_bf16(half_to_float(half));
      }
      return;
    case DType::kF32:
      for (int i = 0; i < count; ++i) {
        float value;
        std::memcpy(&value, source + 4 * i, 4);
        out[i] = to_bf16(value);
      }
      return;
  }
}

/// Element of term `k`, output `n` inside a unit.
int64_t unit_index(int n, int k) { return int64_t{k / 2} * 2 * kUnitOutputs + 2 * n + k % 2; }

}  // namespace

void pack_unit(const std::byte* const rows[kUnitOutputs], DType dtype, int k, int k_padded, bf16* unit) {
  for (int begin = 0; begin < k_padded; begin += kTileTerms) {
    const int count = k - begin < 0 ? 0 : (k - begin < kTileTerms ? k - begin : kTileTerms);
    // Rows that are there, whole and already bf16 are read in place; the others are converted and padded here first.
    alignas(64) bf16 staged[kUnitOutputs][kTileTerms] = {};
    const bf16* tile_rows[kUnitOutputs];
    for (int j = 0; j < kUnitOutputs; ++j) {
      if (rows[j] != nullptr && dtype == DType::kBF16 && count == kTileTerms) {
        tile_rows[j] = reinterpret_cast<const bf16*>(rows[j]) + begin;
      } else {
        if (rows[j] != nullptr) convert(rows[j], dtype, begin, count, staged[j]);
        tile_rows[j] = staged[j];
      }
    }
    transpose_tile(tile_rows, unit + int64_t{begin / kTileTerms} * kTileElements);
  }
  _mm_sfence();  // streamed stores are not ordered with what tells others that the unit is there
}

void unpack_output(const bf16* unit, int output, int k, bf16* out) {
  for (int i = 0; i < k; ++i) out[i] = unit[unit_index(output, i)];
}

void store_key(bf16* keys, int slot, const bf16* key, int head_dim_padded) {
  bf16* unit = keys + slot / kUnitOutputs * unit_elements(head_dim_padded);
  for (int i = 0; i < head_dim_padded; i += 2) {
    std::memcpy(unit + unit_index(slot % kUnitOutputs, i), key + i, 2 * sizeof(bf16));
  }
}

void store_value(bf16* values, int slot, const bf16* value, int head_dim_padded) {
  for (int i = 0; i < head_dim_padded; ++i) {
    values[i / kUnitOutputs * unit_elements(kLeafTokens) + unit_index(i % kUnitOutputs, slot)] = value[i];
  }
}

}  // namespace cpuinfer::kernels
