#include "kernels/pack.h"

#include <emmintrin.h>  // SSE2 is part of x86-64

#include <cstring>

namespace cpuinfer::kernels {
namespace {

constexpr int kTilePairs = kTileTerms / 2;
constexpr int kTileElements = kUnitOutputs * kTileTerms;

constexpr int kConverted = 8;  // elements converted at once

__m128i select(__m128i mask, __m128i yes, __m128i no) {
  return _mm_or_si128(_mm_and_si128(mask, yes), _mm_andnot_si128(mask, no));
}

/// Four binary32 as bf16, each sign-extended to 32 bits: to_bf16 of base/types.h, by integers.
__m128i round_four(__m128i value) {
  const __m128i exponent = _mm_set1_epi32(0x7f800000);
  const __m128i odd = _mm_and_si128(_mm_srli_epi32(value, 16), _mm_set1_epi32(1));
  const __m128i rounded = _mm_add_epi32(value, _mm_add_epi32(odd, _mm_set1_epi32(0x7fff)));
  const __m128i quiet = _mm_or_si128(value, _mm_set1_epi32(0x400000));
  const __m128i sign = _mm_and_si128(value, _mm_set1_epi32(INT32_MIN));
  const __m128i is_nan = _mm_cmpgt_epi32(_mm_andnot_si128(_mm_set1_epi32(INT32_MIN), value), exponent);
  const __m128i is_tiny = _mm_cmpeq_epi32(_mm_and_si128(value, exponent), _mm_setzero_si128());
  return _mm_srai_epi32(select(is_nan, quiet, select(is_tiny, sign, rounded)), 16);
}

/// Four IEEE binary16, each in 32 bits, as binary32, exactly. The one sum, for subnormals (F. Giesen, "Half to float
/// done quick", 2012), is of normal numbers, so that FTZ and DAZ cannot touch it.
__m128i halves_to_floats(__m128i half) {
  const __m128i exponent = _mm_set1_epi32(0x7c00 << 13);
  const __m128i bits = _mm_slli_epi32(_mm_and_si128(half, _mm_set1_epi32(0x7fff)), 13);
  const __m128i sign = _mm_slli_epi32(_mm_and_si128(half, _mm_set1_epi32(0x8000)), 16);
  const __m128i own_exponent = _mm_and_si128(bits, exponent);
  const __m128i normal = _mm_add_epi32(bits, _mm_set1_epi32((127 - 15) << 23));
  const __m128i infinite = _mm_add_epi32(normal, _mm_set1_epi32((128 - 16) << 23));
  const __m128i least = _mm_set1_epi32((127 - 14) << 23);  // 2^-14, the exponent of subnormals
  const __m128i subnormal =
      _mm_castps_si128(_mm_sub_ps(_mm_castsi128_ps(_mm_add_epi32(bits, least)), _mm_castsi128_ps(least)));
  const __m128i is_infinite = _mm_cmpeq_epi32(own_exponent, exponent);
  const __m128i is_subnormal = _mm_cmpeq_epi32(own_exponent, _mm_setzero_si128());
  return _mm_or_si128(sign, select(is_subnormal, subnormal, select(is_infinite, infinite, normal)));
}

/// Eight binary16 as bf16, if none is subnormal: 3 bits of the fraction are rounded off, the exponent gets its new
/// bias.
__m128i round_eight_halves(__m128i half) {
  const __m128i bits = _mm_and_si128(half, _mm_set1_epi16(0x7fff));
  const __m128i odd = _mm_and_si128(_mm_srli_epi16(bits, 3), _mm_set1_epi16(1));
  const __m128i rounded = _mm_srli_epi16(_mm_add_epi16(bits, _mm_add_epi16(odd, _mm_set1_epi16(3))), 3);
  const __m128i normal = _mm_add_epi16(rounded, _mm_set1_epi16((127 - 15) << 7));
  const __m128i is_nan = _mm_cmpgt_epi16(bits, _mm_set1_epi16(0x7c00));
  const __m128i payload = _mm_or_si128(_mm_srli_epi16(bits, 3), _mm_and_si128(is_nan, _mm_set1_epi16(0x40)));
  const __m128i infinite = _mm_or_si128(payload, _mm_set1_epi16(0x7f80));
  const __m128i is_infinite = _mm_cmpgt_epi16(bits, _mm_set1_epi16(0x7bff));
  const __m128i is_zero = _mm_cmpeq_epi16(bits, _mm_setzero_si128());
  const __m128i magnitude = _mm_andnot_si128(is_zero, select(is_infinite, infinite, normal));
  return _mm_or_si128(magnitude, _mm_andnot_si128(_mm_set1_epi16(0x7fff), half));
}

bool has_subnormal(__m128i half) {
  const __m128i bits = _mm_and_si128(half, _mm_set1_epi16(0x7fff));
  const __m128i small = _mm_cmplt_epi16(bits, _mm_set1_epi16(0x400));
  return _mm_movemask_epi8(_mm_andnot_si128(_mm_cmpeq_epi16(bits, _mm_setzero_si128()), small)) != 0;
}

/// Eight elements at any address as bf16. `dtype` is F16 or F32.
void convert_eight(const std::byte* source, DType dtype, bf16* out) {
  const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  __m128i result;
  if (dtype == DType::kF32) {
    const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source) + 1);
    result = _mm_packs_epi32(round_four(first), round_four(second));
  } else if (!has_subnormal(first)) {
    result = round_eight_halves(first);
  } else {
    const __m128i zero = _mm_setzero_si128();
    result = _mm_packs_epi32(round_four(halves_to_floats(_mm_unpacklo_epi16(first, zero))),
                             round_four(halves_to_floats(_mm_unpackhi_epi16(first, zero))));
  }
  _mm_store_si128(reinterpret_cast<__m128i*>(out), result);
}

/// `count` elements of `source`, from element `first` on, as bf16; then zeros up to a multiple of kConverted.
/// out: 16-byte aligned.
void convert(const std::byte* source, DType dtype, int first, int count, bf16* out) {
  const int width = dtype_bytes(dtype);
  source += int64_t{first} * width;
  if (dtype == DType::kBF16) {
    std::memcpy(out, source, sizeof(bf16) * static_cast<size_t>(count));
    return;
  }
  int i = 0;
  for (; i + kConverted <= count; i += kConverted) convert_eight(source + i * width, dtype, out + i);
  if (i == count) return;
  std::byte rest[kConverted * 4] = {};
  std::memcpy(rest, source + i * width, static_cast<size_t>((count - i) * width));
  convert_eight(rest, dtype, out + i);
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
