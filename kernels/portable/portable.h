// Kernels for AVX2 and FMA, written with xsimd: what runs on machines without AVX-512.
#pragma once

#include "kernels/kernels.h"

namespace cpuinfer::kernels {

void gemm_portable_dp(const Gemm&) noexcept;
void gemm_portable_amx(const Gemm&) noexcept;

void rms_norm_portable(const RmsNorm&) noexcept;
void norm_rope_portable(const NormRope&) noexcept;
void silu_mul_portable(const SiluMul&) noexcept;
void softmax_leaf_portable(const SoftmaxLeaf&) noexcept;
void merge_partial_portable(const MergePartial&) noexcept;
void finish_attention_portable(const FinishAttention&) noexcept;
void scale_add_portable(const ScaleAdd&) noexcept;

}  // namespace cpuinfer::kernels
