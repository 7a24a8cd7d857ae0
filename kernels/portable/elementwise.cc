#include "kernels/portable/lanes.h"
#include "kernels/portable/portable.h"

// Exported functions are flattened so that none of xsimd's is emitted as a shared symbol built for AVX2.

namespace cpuinfer::kernels {
namespace {

/// Lanes of the group that starts at `i`.
inline int group_size(int i, int n) { return n - i < kLanes ? n - i : kLanes; }

inline float inverse_rms(const float* x, int n, float eps) {
  Lanes sum;
  for (int i = 0; i < n; i += kLanes) {
    const Lanes v = load(x + i, group_size(i, n));
    sum = fma(v, v, sum);
  }
  return 1.0f / __builtin_sqrtf(fold(sum) / static_cast<float>(n) + eps);
}

inline void fill_zero(bf16* out, int begin, int end) {
  for (int i = begin; i < end; ++i) out[i] = bf16{0};
}

}  // namespace

[[gnu::flatten]] void rms_norm_portable(const RmsNorm& a) noexcept {
  const Lanes r(inverse_rms(a.x, a.n, a.eps));
  for (int i = 0; i < a.n; i += kLanes) {
    const int count = group_size(i, a.n);
    store_bf16((load(a.x + i, count) * r) * load(a.weight + i, count), a.out + i, count);
  }
  fill_zero(a.out, a.n, a.out_count);
}

[[gnu::flatten]] void norm_rope_portable(const NormRope& a) noexcept {
  const Lanes r(a.weight != nullptr ? inverse_rms(a.x, a.n, a.eps) : 0.0f);
  const auto y = [&](int i, int count) {
    const Lanes x = load(a.x + i, count);
    return a.weight != nullptr ? (x * r) * load(a.weight + i, count) : x;
  };
  const int half = a.n / 2;
  for (int i = 0; i < half; i += kLanes) {
    const int count = group_size(i, half);
    const Lanes first = y(i, count);
    const Lanes second = y(i + half, count);
    const Lanes cos = load(a.cos + i, count);
    const Lanes sin = load(a.sin + i, count);
    store_bf16(first * cos - second * sin, a.out + i, count);
    store_bf16(second * cos + first * sin, a.out + i + half, count);
  }
  fill_zero(a.out, a.n, a.out_count);
}

[[gnu::flatten]] void silu_mul_portable(const SiluMul& a) noexcept {
  const Lanes one(1.0f);
  for (int j = 0; j < a.n; j += kLanes) {
    // Two groups of [8 gates][8 ups], or one and a half-empty register.
    const Lanes first = load(a.gate_up + 2 * j);
    const Lanes second = j + kHalf < a.n ? load(a.gate_up + 2 * j + kLanes) : Lanes();
    const Lanes gate(first.low, second.low);
    const Lanes up(first.high, second.high);
    const Lanes minus_gate = Lanes(-gate.low, -gate.high);
    const Lanes sigmoid = one / (one + exp2(minus_gate * Lanes(kLog2e)));
    store_bf16((gate * sigmoid) * up, a.out + j, group_size(j, a.n));
  }
  fill_zero(a.out, a.n, a.out_count);
}

[[gnu::flatten]] void softmax_leaf_portable(const SoftmaxLeaf& a) noexcept {
  const float infinity = __builtin_inff();
  const Lanes scale(a.scale);
  // Entries from `valid` on are not to be trusted: replaced by -inf after scaling, they change no maximum and have the
  // probability zero.
  const auto score = [&](int i) {
    const int count = group_size(i, a.valid);
    const Lanes s = load(a.scores + i, count) * scale;
    if (count == kLanes) return s;
    alignas(32) float staged[kLanes];
    store(s, staged);
    return load(staged, count, -infinity);
  };

  Lanes running(-infinity);
  for (int i = 0; i < a.valid; i += kLanes) running = max(score(i), running);  // VMAXPS keeps `running` at a NaN
  const float top = largest(running);

  Lanes sum;
  for (int i = 0; i < a.valid; i += kLanes) {
    // Lanes without a token add 0. (NaN if top is -inf, but then the lanes with a token do so too.)
    const Lanes p = exp2(score(i) - Lanes(top));
    sum = sum + p;
    store_bf16(p, a.probs + i, group_size(i, a.valid));
  }
  fill_zero(a.probs, a.valid, a.probs_count);
  *a.max = top;
  *a.sum = fold(sum);
}

[[gnu::flatten]] void merge_partial_portable(const MergePartial& a) noexcept {
  if (*a.src.sum == 0.0f) return;
  if (*a.dst.sum == 0.0f) {
    *a.dst.max = *a.src.max;
    *a.dst.sum = *a.src.sum;
    for (int i = 0; i < a.n; i += kLanes) store(load(a.src.out + i), a.dst.out + i);
    return;
  }
  const float top = *a.src.max > *a.dst.max ? *a.src.max : *a.dst.max;
  const float dst_scale = exp2(Floats(*a.dst.max - top)).get(0);
  const float src_scale = exp2(Floats(*a.src.max - top)).get(0);
  *a.dst.max = top;
  *a.dst.sum = __builtin_fmaf(*a.src.sum, src_scale, *a.dst.sum * dst_scale);
  for (int i = 0; i < a.n; i += kLanes)
    store(fma(load(a.src.out + i), Lanes(src_scale), load(a.dst.out + i) * Lanes(dst_scale)), a.dst.out + i);
}

[[gnu::flatten]] void finish_attention_portable(const FinishAttention& a) noexcept {
  const Lanes inverse(1.0f / a.sum);
  for (int i = 0; i < a.n; i += kLanes) {
    const int count = group_size(i, a.n);
    store_bf16(load(a.x + i, count) * inverse, a.out + i, count);
  }
}

[[gnu::flatten]] void scale_add_portable(const ScaleAdd& a) noexcept {
  for (int i = 0; i < a.n; i += kLanes) store(fma(load(a.x + i), Lanes(a.scale), load(a.y + i)), a.y + i);
}

}  // namespace cpuinfer::kernels
