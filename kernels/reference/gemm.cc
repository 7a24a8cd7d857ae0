#include "kernels/reference/reference.h"
#include "kernels/reference/scalar.h"

namespace cpuinfer::kernels {
namespace {

constexpr int kOutputs = 16;  // of one unit

/// The chains of one row of a for the 16 outputs of one unit: chain[0..16).
template <Profile profile>
void unit_chains(const bf16* a, const bf16* unit, int k, float* chain) {
  for (int j = 0; j < kOutputs; ++j) chain[j] = 0.0f;
  if constexpr (profile == Profile::kDp) {
    for (int pair = 0; pair < k / 2; ++pair) {
      const bf16* line = unit + pair * 2 * kOutputs;  // [16 outputs][2 terms]
      const float even = widen(a[2 * pair]);
      const float odd = widen(a[2 * pair + 1]);
      for (int j = 0; j < kOutputs; ++j) {
        chain[j] = __builtin_fmaf(odd, widen(line[2 * j + 1]), chain[j]);
        chain[j] = __builtin_fmaf(even, widen(line[2 * j]), chain[j]);
      }
    }
  } else {
    for (int tile = 0; tile < k / 32; ++tile) {
      float e[kOutputs] = {};
      float o[kOutputs] = {};
      for (int pair = tile * 16; pair < tile * 16 + 16; ++pair) {
        const bf16* line = unit + pair * 2 * kOutputs;
        const float even = widen(a[2 * pair]);
        const float odd = widen(a[2 * pair + 1]);
        for (int j = 0; j < kOutputs; ++j) {
          e[j] = __builtin_fmaf(even, widen(line[2 * j]), e[j]);
          o[j] = __builtin_fmaf(odd, widen(line[2 * j + 1]), o[j]);
        }
      }
      for (int j = 0; j < kOutputs; ++j) chain[j] = chain[j] + (e[j] + o[j]);
    }
  }
}

template <Profile profile>
void gemm(const Gemm& g) {
  for (int unit = 0; unit < g.n / kOutputs; ++unit) {
    for (int row = 0; row < g.m; ++row) {
      const int64_t a_row = g.a_rows != nullptr ? g.a_rows[row] : row;
      float chain[kOutputs];
      unit_chains<profile>(g.a + a_row * g.a_stride, g.w + unit * g.w_unit_stride, g.k, chain);
      float* c = g.c + row * g.c_stride + unit * kOutputs;
      for (int j = 0; j < kOutputs; ++j) c[j] = g.accumulate ? c[j] + chain[j] : chain[j];
    }
  }
}

}  // namespace

void gemm_reference_dp(const Gemm& g) noexcept { gemm<Profile::kDp>(g); }
void gemm_reference_amx(const Gemm& g) noexcept { gemm<Profile::kAmx>(g); }

}  // namespace cpuinfer::kernels
