// Scalar kernels: the oracle of every other kernel, and the fallback that needs nothing. They spell the contracts of
// kernels/kernels.h out, term by term. `route` and `exp2_scalar` (kernels/kernels.h) live here too.
#pragma once

#include "kernels/kernels.h"

namespace cpuinfer::kernels {

void gemm_reference_dp(const Gemm&) noexcept;
void gemm_reference_amx(const Gemm&) noexcept;

void rms_norm_reference(const RmsNorm&) noexcept;
void norm_rope_reference(const NormRope&) noexcept;
void silu_mul_reference(const SiluMul&) noexcept;
void softmax_leaf_reference(const SoftmaxLeaf&) noexcept;
void merge_partial_reference(const MergePartial&) noexcept;
void finish_attention_reference(const FinishAttention&) noexcept;
void scale_add_reference(const ScaleAdd&) noexcept;

}  // namespace cpuinfer::kernels
