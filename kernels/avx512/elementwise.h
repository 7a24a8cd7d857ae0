// Everything that is no matrix product, 16 lanes at a time. Tails are masked: a masked load reads nothing behind the
// array and gives +0, a masked store writes nothing behind it.
//
// Rounding is what the including file has to round 16 float32 to bf16: to_bf16() of base/types.h in each lane. The
// anonymous namespace is on purpose: the two files that include this are compiled for different instruction sets.
#pragma once

#include <immintrin.h>

#include "kernels/kernels.h"

namespace cpuinfer::kernels {
namespace {

[[gnu::always_inline]] inline __mmask16 lanes_left(int i, int n) {
  return n - i >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << (n - i)) - 1);
}

template <typename Rounding>
[[gnu::always_inline]] inline void store_bf16(bf16* out, __mmask16 lanes, __m512 value) {
  _mm256_mask_storeu_epi16(out, lanes, Rounding::to_bf16(value));
}

[[gnu::always_inline]] inline void fill_zero(bf16* out, int begin, int end) {
  for (int i = begin; i < end; i += 16) _mm256_mask_storeu_epi16(out + i, lanes_left(i, end), _mm256_setzero_si256());
}

/// The folds that end a canonical sum: lane i += lane i + 8, + 4, + 2, + 1.
[[gnu::always_inline]] inline float fold16(__m512 v) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/// exp2(x) of kernels.h. max and min return their second operand if either is NaN.
[[gnu::always_inline]] inline __m512 exp2_lanes(__m512 x) {
  const __mmask16 vanishes = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_LT_OQ);
  x = _mm512_min_ps(_mm512_set1_ps(127.0f), x);
  const __m512 t = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, t);
  __m512 p = _mm512_set1_ps(kExp2Coefficients[6]);
#pragma GCC unroll 6
  for (int i = 5; i >= 0; --i) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(kExp2Coefficients[i]));
  const __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(t), 23);
  const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(p), exponent);
  // The integer form of NaN is 0x80000000, which the shift removes: the NaN in p stays.
  return _mm512_castsi512_ps(_mm512_mask_set1_epi32(bits, vanishes, 0));
}

/// 1 / root-mean-square of x[0..n).
[[gnu::always_inline]] inline __m512 inverse_rms(const float* x, int n, float eps) {
  __m512 sums = _mm512_setzero_ps();
  for (int i = 0; i < n; i += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(lanes_left(i, n), x + i);
    sums = _mm512_fmadd_ps(v, v, sums);
  }
  const __m128 mean = _mm_set_ss(fold16(sums) / static_cast<float>(n) + eps);
  return _mm512_set1_ps(1.0f / _mm_cvtss_f32(_mm_sqrt_ss(mean)));
}

template <typename Rounding>
[[gnu::always_inline]] inline void rms_norm(const RmsNorm& args) {
  const __m512 r = inverse_rms(args.x, args.n, args.eps);
  for (int i = 0; i < args.n; i += 16) {
    const __mmask16 lanes = lanes_left(i, args.n);
    const __m512 x = _mm512_maskz_loadu_ps(lanes, args.x + i);
    const __m512 weight = _mm512_maskz_loadu_ps(lanes, args.weight + i);
    store_bf16<Rounding>(args.out + i, lanes, _mm512_mul_ps(_mm512_mul_ps(x, r), weight));
  }
  fill_zero(args.out, args.n, args.out_count);
}

template <typename Rounding>
[[gnu::always_inline]] inline void norm_rope(const NormRope& args) {
  const int half = args.n / 2;
  __m512 r = _mm512_setzero_ps();
  if (args.weight != nullptr) r = inverse_rms(args.x, args.n, args.eps);
  for (int i = 0; i < half; i += 16) {
    const __mmask16 lanes = lanes_left(i, half);
    __m512 first = _mm512_maskz_loadu_ps(lanes, args.x + i);
    __m512 second = _mm512_maskz_loadu_ps(lanes, args.x + half + i);
    if (args.weight != nullptr) {
      first = _mm512_mul_ps(_mm512_mul_ps(first, r), _mm512_maskz_loadu_ps(lanes, args.weight + i));
      second = _mm512_mul_ps(_mm512_mul_ps(second, r), _mm512_maskz_loadu_ps(lanes, args.weight + half + i));
    }
    const __m512 cos = _mm512_maskz_loadu_ps(lanes, args.cos + i);
    const __m512 sin = _mm512_maskz_loadu_ps(lanes, args.sin + i);
    store_bf16<Rounding>(args.out + i, lanes, _mm512_sub_ps(_mm512_mul_ps(first, cos), _mm512_mul_ps(second, sin)));
    store_bf16<Rounding>(args.out + half + i, lanes,
                         _mm512_add_ps(_mm512_mul_ps(second, cos), _mm512_mul_ps(first, sin)));
  }
  fill_zero(args.out, args.n, args.out_count);
}

template <typename Rounding>
[[gnu::always_inline]] inline void silu_mul(const SiluMul& args) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000u));
  for (int i = 0; i < args.n; i += 16) {
    // Two groups of 8 gates and 8 ups; the last one may be alone.
    const bool both = args.n - i > 8;
    const __m512 low = _mm512_loadu_ps(args.gate_up + 2 * i);
    const __m512 high = _mm512_maskz_loadu_ps(both ? 0xffff : 0, args.gate_up + 2 * i + 16);
    const __m512 gate = _mm512_shuffle_f32x4(low, high, 0x44);
    const __m512 up = _mm512_shuffle_f32x4(low, high, 0xee);
    const __m512 minus_gate = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(gate), sign));
    const __m512 power = exp2_lanes(_mm512_mul_ps(minus_gate, _mm512_set1_ps(kLog2e)));
    const __m512 sigmoid = _mm512_div_ps(one, _mm512_add_ps(one, power));
    store_bf16<Rounding>(args.out + i, lanes_left(i, args.n), _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid), up));
  }
  fill_zero(args.out, args.n, args.out_count);
}

/// 16 scores of a leaf, scaled, and their place in the running maximum.
[[gnu::always_inline]] inline __m512 max_of_scores(const SoftmaxLeaf& args, int i, __mmask16 lanes, __m512 max) {
  const __m512 scores = _mm512_maskz_loadu_ps(lanes, args.scores + i);
  // A NaN leaves max as it is.
  return _mm512_mask_max_ps(max, lanes, _mm512_mul_ps(scores, _mm512_set1_ps(args.scale)), max);
}

/// 16 probabilities of a leaf: written, and added to their sum.
template <typename Rounding>
[[gnu::always_inline]] inline __m512 add_probs(const SoftmaxLeaf& args, int i, __mmask16 lanes, __m512 max,
                                               __m512 sums) {
  const __m512 scores = _mm512_maskz_loadu_ps(lanes, args.scores + i);
  const __m512 p = exp2_lanes(_mm512_sub_ps(_mm512_mul_ps(scores, _mm512_set1_ps(args.scale)), max));
  store_bf16<Rounding>(args.probs + i, lanes, p);
  return _mm512_mask_add_ps(sums, lanes, sums, p);
}

template <typename Rounding>
[[gnu::always_inline]] inline void softmax_leaf(const SoftmaxLeaf& args) {
  // Nearly all leaves are full: the loops over whole vectors have constant masks.
  constexpr __mmask16 kAll = 0xffff;
  const int whole = args.valid / 16 * 16;
  const __mmask16 rest = lanes_left(whole, args.valid);
  __m512 max = _mm512_set1_ps(-__builtin_inff());
  for (int i = 0; i < whole; i += 16) max = max_of_scores(args, i, kAll, max);
  if (rest != 0) max = max_of_scores(args, whole, rest, max);
  alignas(64) float lane_max[16];
  _mm512_store_ps(lane_max, max);
  float leaf_max = lane_max[0];
  for (int i = 1; i < 16; ++i) leaf_max = lane_max[i] > leaf_max ? lane_max[i] : leaf_max;

  const __m512 minus = _mm512_set1_ps(leaf_max);
  __m512 sums = _mm512_setzero_ps();
  for (int i = 0; i < whole; i += 16) sums = add_probs<Rounding>(args, i, kAll, minus, sums);
  if (rest != 0) sums = add_probs<Rounding>(args, whole, rest, minus, sums);
  fill_zero(args.probs, args.valid, args.probs_count);
  *args.max = leaf_max;
  *args.sum = fold16(sums);
}

[[gnu::always_inline]] inline void merge_partial(const MergePartial& args) {
  const AttentionPartial& dst = args.dst;
  const AttentionPartial& src = args.src;
  if (*src.sum == 0.0f) return;
  if (*dst.sum == 0.0f) {
    *dst.max = *src.max;
    *dst.sum = *src.sum;
    for (int i = 0; i < args.n; i += 16) _mm512_storeu_ps(dst.out + i, _mm512_loadu_ps(src.out + i));
    return;
  }
  const float max = *src.max > *dst.max ? *src.max : *dst.max;
  const __m512 dst_scale = exp2_lanes(_mm512_set1_ps(*dst.max - max));
  const __m512 src_scale = exp2_lanes(_mm512_set1_ps(*src.max - max));
  const __m128 kept_sum = _mm_mul_ss(_mm_set_ss(*dst.sum), _mm512_castps512_ps128(dst_scale));
  *dst.max = max;
  *dst.sum = _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(*src.sum), _mm512_castps512_ps128(src_scale), kept_sum));
  for (int i = 0; i < args.n; i += 16) {
    const __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(dst.out + i), dst_scale);
    _mm512_storeu_ps(dst.out + i, _mm512_fmadd_ps(_mm512_loadu_ps(src.out + i), src_scale, kept));
  }
}

template <typename Rounding>
[[gnu::always_inline]] inline void finish_attention(const FinishAttention& args) {
  const __m512 inverse = _mm512_set1_ps(1.0f / args.sum);
  for (int i = 0; i < args.n; i += 16) {
    const __mmask16 lanes = lanes_left(i, args.n);
    store_bf16<Rounding>(args.out + i, lanes, _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, args.x + i), inverse));
  }
}

[[gnu::always_inline]] inline void scale_add(const ScaleAdd& args) {
  const __m512 scale = _mm512_set1_ps(args.scale);
  for (int i = 0; i < args.n; i += 16) {
    const __m512 x = _mm512_loadu_ps(args.x + i);
    _mm512_storeu_ps(args.y + i, _mm512_fmadd_ps(x, scale, _mm512_loadu_ps(args.y + i)));
  }
}

}  // namespace
}  // namespace cpuinfer::kernels
