// The choice among rows that give the same bits, by measurement: which instruction is fast differs between CPUs of one
// instruction set (VDPBF16PS has full rate on Zen 4 and half on Sapphire Rapids, where widening and FMA win).
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

#include "kernels/registry.h"

namespace cpuinfer::kernels {
namespace {

// Weights of one product: beyond the second-level cache, so that they come in a stream as in decode, and the same few
// again and again, so that filling them takes no time. K of most matrices of Qwen3-30B-A3B.
constexpr int kTerms = 2048;
constexpr int kUnits = 64;  // 4 MiB
// A later row of the list must be faster by this much: the order of the list is a judgement too.
constexpr double kGain = 1.03;
constexpr int kRepeats = 4;

/// Rows of activations that stand for a class: its middle.
constexpr int rows_of_class(int index) {
  constexpr int kRows[kRowClassCount] = {1, 2, 4, 7, 14, 64};
  return kRows[index];
}
/// Units that are multiplied: fewer when there are many rows, for time's sake.
constexpr int units_for(int rows) { return rows <= 14 ? kUnits : 16; }

struct FreeDeleter {
  void operator()(void* memory) const { std::free(memory); }
};
template <typename T>
std::unique_ptr<T[], FreeDeleter> lines_of(size_t count) {
  return std::unique_ptr<T[], FreeDeleter>(static_cast<T*>(std::aligned_alloc(64, count * sizeof(T))));
}

/// Small numbers of both signs: no overflow, no subnormals.
void fill(bf16* values, size_t count) {
  uint32_t state = 1;
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    values[i] = bf16{static_cast<uint16_t>(0x3c00u + (state >> 24) + (state >> 16 & 0x8000u))};
  }
}

/// Seconds of one product, best of some.
double time_of(const GemmKernel& kernel, const Gemm& gemm) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kRepeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    kernel.run(gemm);
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

/// Rows that give the bits of `profile` here; without the reference, unless there is nothing else.
std::vector<const GemmKernel*> candidates(Isa have, Profile profile) {
  std::vector<const GemmKernel*> rows;
  for (const GemmKernel& row : gemm_kernels()) {
    const bool last_resort = row.needs == Isa::kNone && !rows.empty();
    if (row.automatic && row.profile == profile && covers(have, row.needs) && !last_resort) rows.push_back(&row);
  }
  return rows;
}

}  // namespace

Result<Kernels> select_fastest_kernels(Isa have, const KernelRequest& request) {
  TRY_ASSIGN(Kernels kernels, select_kernels(have, request));
  if (request.gemm != "auto") return kernels;
  const std::vector<const GemmKernel*> rows = candidates(have, kernels.profile);
  if (rows.size() < 2) return kernels;

  constexpr int kMaxRows = rows_of_class(kRowClassCount - 1);
  const auto weights = lines_of<bf16>(size_t{kUnits} * 16 * kTerms);
  const auto activations = lines_of<bf16>(size_t{kMaxRows} * kTerms);
  const auto outputs = lines_of<float>(size_t{kMaxRows} * kUnits * 16);
  if (!weights || !activations || !outputs) return kernels;
  fill(weights.get(), size_t{kUnits} * 16 * kTerms);
  fill(activations.get(), size_t{kMaxRows} * kTerms);

  const unsigned mxcsr = _mm_getcsr();
  _mm_setcsr(0x9fc0);  // as the workers: round to nearest, no traps, subnormals are zero
  for (int i = 0; i < kRowClassCount; ++i) {
    const int m = rows_of_class(i);
    const Gemm gemm = {.m = m,
                       .n = units_for(m) * 16,
                       .k = kTerms,
                       .a = activations.get(),
                       .a_stride = kTerms,
                       .w = weights.get(),
                       .w_unit_stride = int64_t{16} * kTerms,
                       .c = outputs.get(),
                       .c_stride = int64_t{kUnits} * 16};
    double best = time_of(*kernels.gemm_of_class[i], gemm);
    const GemmKernel* const likely = kernels.gemm_of_class[i];
    for (const GemmKernel* row : rows) {
      if (row == likely) continue;
      const double seconds = time_of(*row, gemm);
      if (seconds * kGain >= best) continue;
      best = seconds;
      kernels.gemm_of_class[i] = row;
    }
  }
  _mm_setcsr(mxcsr);
  return kernels;
}

}  // namespace cpuinfer::kernels
