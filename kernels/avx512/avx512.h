// Kernels for AVX-512 (F, BW, VL, DQ); gemm_avx512_dp needs AVX512_BF16 as well. Contracts: kernels/kernels.h.
#pragma once

#include "kernels/kernels.h"

namespace cpuinfer::kernels {

/// Matrix products by widening bf16 to binary32 in registers and fused multiply-add, in the order of Profile::kDp and
/// of Profile::kAmx. Faster than VDPBF16PS where that instruction runs at half rate (Sapphire and Emerald Rapids).
void gemm_avx512_fma_dp(const Gemm& gemm) noexcept;
void gemm_avx512_fma_amx(const Gemm& gemm) noexcept;

/// Matrix product by VDPBF16PS (Profile::kDp).
void gemm_avx512_dp(const Gemm& gemm) noexcept;

void rms_norm_avx512(const RmsNorm& args) noexcept;
void norm_rope_avx512(const NormRope& args) noexcept;
void silu_mul_avx512(const SiluMul& args) noexcept;
void softmax_leaf_avx512(const SoftmaxLeaf& args) noexcept;
void merge_partial_avx512(const MergePartial& args) noexcept;
void finish_attention_avx512(const FinishAttention& args) noexcept;
void scale_add_avx512(const ScaleAdd& args) noexcept;

/// Those that round, with AVX512_BF16.
void rms_norm_avx512_bf16(const RmsNorm& args) noexcept;
void norm_rope_avx512_bf16(const NormRope& args) noexcept;
void silu_mul_avx512_bf16(const SiluMul& args) noexcept;
void softmax_leaf_avx512_bf16(const SoftmaxLeaf& args) noexcept;
void finish_attention_avx512_bf16(const FinishAttention& args) noexcept;

}  // namespace cpuinfer::kernels
