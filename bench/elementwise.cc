#include "bench/elementwise.h"

#include <cstring>

#include "base/format.h"
#include "base/types.h"
#include "bench/timing.h"

namespace cpuinfer::bench {
namespace {

using kernels::ElementwiseKernels;

constexpr int kHidden = 2048;
constexpr int kHeadDim = 128;
constexpr int kIntermediate = 768;

/// Operands and results of one operation. Inputs are between -1 and 1; results begin as zeros.
struct Data {
  alignas(64) float x[2 * kHidden];
  alignas(64) float weight[kHidden];
  alignas(64) float cos[kHeadDim / 2];
  alignas(64) float sin[kHeadDim / 2];
  alignas(64) float y[kHidden];  // in and out
  alignas(64) bf16 out[kHidden];
  alignas(64) float scalars[4];  // max and sum: in and out
  float src[2];

  void reset() {
    const auto value = [](int i) { return static_cast<float>((i * 2654435761u) >> 8) * 0x1p-23f - 1.0f; };
    for (int i = 0; i < 2 * kHidden; ++i) x[i] = value(i);
    for (int i = 0; i < kHidden; ++i) weight[i] = value(i + 5000);
    for (int i = 0; i < kHeadDim / 2; ++i) cos[i] = value(i + 8000), sin[i] = value(i + 9000);
    for (int i = 0; i < kHidden; ++i) y[i] = value(i + 10000);
    std::memset(out, 0, sizeof(out));
    scalars[0] = 0.5f, scalars[1] = 3.0f, scalars[2] = 0, scalars[3] = 0;
    src[0] = 0.75f, src[1] = 2.0f;
  }
  bool same_results(const Data& other) const {
    return std::memcmp(y, other.y, sizeof(y)) == 0 && std::memcmp(out, other.out, sizeof(out)) == 0 &&
           std::memcmp(scalars, other.scalars, sizeof(scalars)) == 0;
  }
};

struct Operation {
  const char* name;
  int n;
  void (*run)(const ElementwiseKernels& set, Data& d);
};

constexpr Operation kOperations[] = {
    {"rms_norm", kHidden,
     [](const ElementwiseKernels& set, Data& d) {
       set.rms_norm({.x = d.x, .weight = d.weight, .n = kHidden, .eps = 1e-6f, .out = d.out, .out_count = kHidden});
     }},
    {"norm_rope", kHeadDim,
     [](const ElementwiseKernels& set, Data& d) {
       set.norm_rope({.x = d.x,
                      .weight = d.weight,
                      .cos = d.cos,
                      .sin = d.sin,
                      .n = kHeadDim,
                      .eps = 1e-6f,
                      .out = d.out,
                      .out_count = kHeadDim});
     }},
    {"silu_mul", kIntermediate,
     [](const ElementwiseKernels& set, Data& d) {
       set.silu_mul({.gate_up = d.x, .n = kIntermediate, .out = d.out, .out_count = kIntermediate});
     }},
    {"softmax_leaf", kernels::kLeafTokens,
     [](const ElementwiseKernels& set, Data& d) {
       set.softmax_leaf({.scores = d.x,
                         .valid = kernels::kLeafTokens,
                         .scale = 1.25f,
                         .probs = d.out,
                         .probs_count = kernels::kLeafTokens,
                         .max = &d.scalars[2],
                         .sum = &d.scalars[3]});
     }},
    {"merge_partial", kHeadDim,
     [](const ElementwiseKernels& set, Data& d) {
       set.merge_partial({.dst = {.max = &d.scalars[0], .sum = &d.scalars[1], .out = d.y},
                          .src = {.max = &d.src[0], .sum = &d.src[1], .out = d.x},
                          .n = kHeadDim});
     }},
    {"finish_attention", kHeadDim,
     [](const ElementwiseKernels& set, Data& d) {
       set.finish_attention({.x = d.x, .sum = 3.0f, .n = kHeadDim, .out = d.out});
     }},
    {"scale_add", kHidden,
     [](const ElementwiseKernels& set, Data& d) {
       set.scale_add({.x = d.x, .scale = 0x1p-20f, .y = d.y, .n = kHidden});
     }},
};

}  // namespace

Result<std::vector<ElementwiseCell>> measure_elementwise(numa::Team& team,
                                                         std::span<const ElementwiseKernels* const> sets,
                                                         double seconds, const Watch& watch) {
  constexpr int kCallsPerSample = 256;
  std::vector<ElementwiseCell> cells;
  const auto own = std::make_unique<Data>();
  const auto expected = std::make_unique<Data>();
  for (const Operation& operation : kOperations) {
    TRY(watch.check(static_cast<double>(&operation - kOperations) / static_cast<double>(std::size(kOperations))));
    const size_t first = cells.size();
    bool same = true;
    // In a worker, for its floating-point mode.
    team.run([&](numa::Worker& worker) {
      if (worker.rank != 0) return;
      expected->reset();
      operation.run(*sets.back(), *expected);
      for (const ElementwiseKernels* set : sets) {
        own->reset();
        operation.run(*set, *own);
        same = same && own->same_results(*expected);
        const double one = median_seconds(seconds, [&] {
          return seconds_of([&] {
                   for (int i = 0; i < kCallsPerSample; ++i) operation.run(*set, *own);
                 }) /
                 kCallsPerSample;
        });
        cells.push_back({set, operation.name, operation.n, one * 1e9, 0});
        if (!same) return;
      }
    });
    if (!same)
      return fail(ErrorCode::kInternal,
                  format("{} of the kernels {} computes other bits than {} for {} elements; please report it",
                         operation.name, cells.back().kernels->name, sets.back()->name, operation.n));
    for (size_t i = first; i < cells.size(); ++i) cells[i].speedup = cells.back().nanoseconds / cells[i].nanoseconds;
  }
  return cells;
}

}  // namespace cpuinfer::bench
