// For CPUs whose AVX-512 has no instruction that rounds to bf16.
#include "kernels/avx512/elementwise.h"

#include "kernels/avx512/avx512.h"

namespace cpuinfer::kernels {
namespace {

struct IntegerRounding {
  [[gnu::always_inline]] static inline __m256i to_bf16(__m512 value) {
    const __m512i u = _mm512_castps_si512(value);
    const __m512i last_bit = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i biased = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), last_bit);
    __m512i rounded = _mm512_srli_epi32(biased, 16);
    const __m512i upper = _mm512_srli_epi32(u, 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, upper, _mm512_set1_epi32(0x40));
    const __mmask16 zero_exponent = _mm512_testn_epi32_mask(u, _mm512_set1_epi32(0x7f800000));
    return _mm512_cvtepi32_epi16(_mm512_mask_and_epi32(rounded, zero_exponent, upper, _mm512_set1_epi32(0x8000)));
  }
};

}  // namespace

void rms_norm_avx512(const RmsNorm& args) noexcept { rms_norm<IntegerRounding>(args); }
void norm_rope_avx512(const NormRope& args) noexcept { norm_rope<IntegerRounding>(args); }
void silu_mul_avx512(const SiluMul& args) noexcept { silu_mul<IntegerRounding>(args); }
void softmax_leaf_avx512(const SoftmaxLeaf& args) noexcept { softmax_leaf<IntegerRounding>(args); }
void finish_attention_avx512(const FinishAttention& args) noexcept { finish_attention<IntegerRounding>(args); }
void merge_partial_avx512(const MergePartial& args) noexcept { merge_partial(args); }
void scale_add_avx512(const ScaleAdd& args) noexcept { scale_add(args); }

}  // namespace cpuinfer::kernels
