#include "kernels/reference/scalar.h"

namespace cpuinfer::kernels {

void route(const Router& r) noexcept {
  float* p = r.scratch;
  float max = -__builtin_inff();
  for (int i = 0; i < r.experts; ++i)
    if (r.logits[i] > max) max = r.logits[i];
  for (int i = 0; i < r.experts; ++i) p[i] = exp2_contract((r.logits[i] - max) * kLog2e);
  const float sum = sum16(p, r.experts);
  for (int i = 0; i < r.experts; ++i) p[i] = p[i] / sum;

  // K times the most probable one that is left. A probability is never negative, so -1 marks those that are taken;
  // comparisons are written so that a NaN (from NaN logits) is never better, but can be taken when nothing else is
  // left: ids stay distinct and in range, and the NaN shows up in the weights.
  float chosen_sum = 0.0f;
  for (int slot = 0; slot < r.chosen; ++slot) {
    int best = -1;
    for (int i = 0; i < r.experts; ++i) {
      if (p[i] < 0.0f) continue;
      if (best < 0 || p[i] > p[best]) best = i;
    }
    r.expert_ids[slot] = best;
    r.weights[slot] = p[best];
    chosen_sum = chosen_sum + p[best];
    p[best] = -1.0f;
  }
  if (r.normalize)
    for (int slot = 0; slot < r.chosen; ++slot) r.weights[slot] = r.weights[slot] / chosen_sum;

  // Insertion sort by expert: K is small.
  for (int slot = 1; slot < r.chosen; ++slot) {
    const int32_t id = r.expert_ids[slot];
    const float weight = r.weights[slot];
    int to = slot;
    for (; to > 0 && r.expert_ids[to - 1] > id; --to) {
      r.expert_ids[to] = r.expert_ids[to - 1];
      r.weights[to] = r.weights[to - 1];
    }
    r.expert_ids[to] = id;
    r.weights[to] = weight;
  }
}

}  // namespace cpuinfer::kernels
