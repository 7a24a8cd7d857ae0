// For CPUs with AVX512_BF16: one instruction rounds 16 values, where IntegerRounding takes eight.
#include "kernels/avx512/avx512.h"
#include "kernels/avx512/elementwise.h"

namespace cpuinfer::kernels {
namespace {

struct HardwareRounding {
  /// VCVTNEPS2BF16 flushes subnormals and keeps NaN quiet whatever MXCSR says: the definition of to_bf16().
  [[gnu::always_inline]] static inline __m256i to_bf16(__m512 value) { return (__m256i)_mm512_cvtneps_pbh(value); }
};

}  // namespace

void rms_norm_avx512_bf16(const RmsNorm& args) noexcept { rms_norm<HardwareRounding>(args); }
void norm_rope_avx512_bf16(const NormRope& args) noexcept { norm_rope<HardwareRounding>(args); }
void silu_mul_avx512_bf16(const SiluMul& args) noexcept { silu_mul<HardwareRounding>(args); }
void softmax_leaf_avx512_bf16(const SoftmaxLeaf& args) noexcept { softmax_leaf<HardwareRounding>(args); }
void finish_attention_avx512_bf16(const FinishAttention& args) noexcept { finish_attention<HardwareRounding>(args); }

}  // namespace cpuinfer::kernels
