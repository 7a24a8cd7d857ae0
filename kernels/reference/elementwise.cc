#include "kernels/reference/reference.h"
#include "kernels/reference/scalar.h"

namespace cpuinfer::kernels {
namespace {

/// 1 / root-mean-square of x[0..n).
float inverse_rms(const float* x, int n, float eps) {
  float lanes[16] = {};
  for (int i = 0; i < n; ++i) lanes[i % 16] = __builtin_fmaf(x[i], x[i], lanes[i % 16]);
  return 1.0f / __builtin_sqrtf(fold16(lanes) / static_cast<float>(n) + eps);
}

void fill_zero(bf16* out, int begin, int end) {
  for (int i = begin; i < end; ++i) out[i] = bf16{0};
}

}  // namespace

float exp2_scalar(float x) noexcept { return exp2_contract(x); }

void rms_norm_reference(const RmsNorm& a) noexcept {
  const float r = inverse_rms(a.x, a.n, a.eps);
  for (int i = 0; i < a.n; ++i) a.out[i] = narrow((a.x[i] * r) * a.weight[i]);
  fill_zero(a.out, a.n, a.out_count);
}

void norm_rope_reference(const NormRope& a) noexcept {
  const float r = a.weight != nullptr ? inverse_rms(a.x, a.n, a.eps) : 0.0f;
  const auto y = [&](int i) { return a.weight != nullptr ? (a.x[i] * r) * a.weight[i] : a.x[i]; };
  const int half = a.n / 2;
  for (int i = 0; i < half; ++i) {
    const float first = y(i);
    const float second = y(i + half);
    a.out[i] = narrow(first * a.cos[i] - second * a.sin[i]);
    a.out[i + half] = narrow(second * a.cos[i] + first * a.sin[i]);
  }
  fill_zero(a.out, a.n, a.out_count);
}

void silu_mul_reference(const SiluMul& a) noexcept {
  for (int j = 0; j < a.n; ++j) {
    const float* group = a.gate_up + j / 8 * 16;  // [8 gates][8 ups]
    const float gate = group[j % 8];
    const float up = group[8 + j % 8];
    a.out[j] = narrow((gate * (1.0f / (1.0f + exp2_contract(-gate * kLog2e)))) * up);
  }
  fill_zero(a.out, a.n, a.out_count);
}

void softmax_leaf_reference(const SoftmaxLeaf& a) noexcept {
  float s[kLeafTokens];
  float max = -__builtin_inff();
  for (int i = 0; i < a.valid; ++i) {
    s[i] = a.scores[i] * a.scale;
    if (s[i] > max) max = s[i];
  }
  for (int i = 0; i < a.valid; ++i) {
    s[i] = exp2_contract(s[i] - max);
    a.probs[i] = narrow(s[i]);
  }
  fill_zero(a.probs, a.valid, a.probs_count);
  *a.max = max;
  *a.sum = sum16(s, a.valid);
}

void merge_partial_reference(const MergePartial& a) noexcept {
  if (*a.src.sum == 0.0f) return;
  if (*a.dst.sum == 0.0f) {
    *a.dst.max = *a.src.max;
    *a.dst.sum = *a.src.sum;
    for (int i = 0; i < a.n; ++i) a.dst.out[i] = a.src.out[i];
    return;
  }
  const float max = *a.src.max > *a.dst.max ? *a.src.max : *a.dst.max;
  const float dst_scale = exp2_contract(*a.dst.max - max);
  const float src_scale = exp2_contract(*a.src.max - max);
  *a.dst.max = max;
  *a.dst.sum = __builtin_fmaf(*a.src.sum, src_scale, *a.dst.sum * dst_scale);
  for (int i = 0; i < a.n; ++i) a.dst.out[i] = __builtin_fmaf(a.src.out[i], src_scale, a.dst.out[i] * dst_scale);
}

void finish_attention_reference(const FinishAttention& a) noexcept {
  const float inverse = 1.0f / a.sum;
  for (int i = 0; i < a.n; ++i) a.out[i] = narrow(a.x[i] * inverse);
}

void scale_add_reference(const ScaleAdd& a) noexcept {
  for (int i = 0; i < a.n; ++i) a.y[i] = __builtin_fmaf(a.x[i], a.scale, a.y[i]);
}

}  // namespace cpuinfer::kernels
