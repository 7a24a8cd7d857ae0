// Matrix products with AVX2 and FMA. The 16 outputs of a unit live in two registers; a line of packed weights is
// widened to float32 by a shift (even terms) and a mask (odd terms) and used for all rows of a block while it is in
// registers, so a product of up to kRows rows reads every weight once.
#include <xsimd/xsimd.hpp>

#include "kernels/portable/portable.h"

namespace cpuinfer::kernels {
namespace {

using Arch = xsimd::fma3<xsimd::avx2>;
using Floats = xsimd::batch<float, Arch>;
using Words = xsimd::batch<int32_t, Arch>;

constexpr int kOutputs = 16;  // of one unit
constexpr int kHalves = 2;    // registers for kOutputs floats
constexpr int kLanes = 8;
constexpr int kRows = 4;                     // 4 rows x 2 accumulators + a line of weights fit 16 registers
constexpr int64_t kRowBlockBytes = 1 << 20;  // rows of a that stay in the L2 cache while the weights stream by

inline Floats even_terms(Words pairs) { return xsimd::bitwise_cast<Floats>(pairs << 16); }
inline Floats odd_terms(Words pairs) {
  return xsimd::bitwise_cast<Floats>(pairs & Words(static_cast<int32_t>(0xffff0000u)));
}
template <bool odd>
inline Floats terms(Words pairs) {
  return odd ? odd_terms(pairs) : even_terms(pairs);
}

inline Words load_pairs(const bf16* line) { return Words::load_aligned(reinterpret_cast<const int32_t*>(line)); }
inline Words broadcast_pair(const bf16* a) {
  int32_t pair;
  __builtin_memcpy(&pair, a, sizeof(pair));
  return Words(pair);
}

/// A block of rows x units outputs: where its operands are.
template <int rows, int units>
struct Block {
  const bf16* a[rows];
  const bf16* w[units];
  Floats chain[rows][units][kHalves];
};

/// Profile::kDp: one chain per output over all k.
template <int rows, int units>
inline void run_dp(Block<rows, units>& block, int k) {
  Floats c[rows][units][kHalves];
  for (int r = 0; r < rows; ++r)
    for (int u = 0; u < units; ++u)
      for (int h = 0; h < kHalves; ++h) c[r][u][h] = Floats(0.0f);
  for (int i = 0; i < k; i += 2) {
    for (int u = 0; u < units; ++u) {
      const bf16* line = block.w[u] + int64_t{i} * kOutputs;
      const Words low = load_pairs(line);
      const Words high = load_pairs(line + 2 * kLanes);
      const Floats odd[kHalves] = {odd_terms(low), odd_terms(high)};
      const Floats even[kHalves] = {even_terms(low), even_terms(high)};
      for (int r = 0; r < rows; ++r) {
        const Words pair = broadcast_pair(block.a[r] + i);
        const Floats a_odd = odd_terms(pair);
        const Floats a_even = even_terms(pair);
        for (int h = 0; h < kHalves; ++h) c[r][u][h] = xsimd::fma(a_odd, odd[h], c[r][u][h]);
        for (int h = 0; h < kHalves; ++h) c[r][u][h] = xsimd::fma(a_even, even[h], c[r][u][h]);
      }
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int u = 0; u < units; ++u)
      for (int h = 0; h < kHalves; ++h) block.chain[r][u][h] = c[r][u][h];
}

/// The even or the odd chain of one tile of 32 terms, for Profile::kAmx. Each has its own pass over the tile (1 KiB,
/// in the L1 cache by the second): both at once would need more accumulators than there are registers.
template <bool odd, int rows, int units>
inline void run_tile(const Block<rows, units>& block, int first, Floats (&sum)[rows][units][kHalves]) {
  for (int r = 0; r < rows; ++r)
    for (int u = 0; u < units; ++u)
      for (int h = 0; h < kHalves; ++h) sum[r][u][h] = Floats(0.0f);
  for (int i = first; i < first + 32; i += 2) {
    for (int u = 0; u < units; ++u) {
      const bf16* line = block.w[u] + int64_t{i} * kOutputs;
      const Floats w[kHalves] = {terms<odd>(load_pairs(line)), terms<odd>(load_pairs(line + 2 * kLanes))};
      for (int r = 0; r < rows; ++r) {
        const Floats a = terms<odd>(broadcast_pair(block.a[r] + i));
        for (int h = 0; h < kHalves; ++h) sum[r][u][h] = xsimd::fma(a, w[h], sum[r][u][h]);
      }
    }
  }
}

template <int rows, int units>
inline void run_amx(Block<rows, units>& block, int k) {
  for (int r = 0; r < rows; ++r)
    for (int u = 0; u < units; ++u)
      for (int h = 0; h < kHalves; ++h) block.chain[r][u][h] = Floats(0.0f);
  for (int first = 0; first < k; first += 32) {
    Floats even[rows][units][kHalves];
    Floats odd[rows][units][kHalves];
    run_tile<false>(block, first, even);
    run_tile<true>(block, first, odd);
    for (int r = 0; r < rows; ++r)
      for (int u = 0; u < units; ++u)
        for (int h = 0; h < kHalves; ++h) block.chain[r][u][h] = block.chain[r][u][h] + (even[r][u][h] + odd[r][u][h]);
  }
}

/// Outputs of rows [row, row + rows) and units [unit, unit + units). Flattened: xsimd's functions must not be emitted
/// as shared symbols built for AVX2 (docs/architecture.md, "Kernels").
template <Profile profile, int rows, int units>
[[gnu::flatten]] void run_block(const Gemm& g, int row, int unit) {
  Block<rows, units> block;
  for (int r = 0; r < rows; ++r) {
    const int64_t a_row = g.a_rows != nullptr ? g.a_rows[row + r] : row + r;
    block.a[r] = g.a + a_row * g.a_stride;
  }
  for (int u = 0; u < units; ++u) block.w[u] = g.w + (unit + u) * g.w_unit_stride;
  if constexpr (profile == Profile::kDp) {
    run_dp(block, g.k);
  } else {
    run_amx(block, g.k);
  }
  for (int r = 0; r < rows; ++r) {
    for (int u = 0; u < units; ++u) {
      float* c = g.c + (row + r) * g.c_stride + (unit + u) * kOutputs;
      for (int h = 0; h < kHalves; ++h) {
        const Floats chain = block.chain[r][u][h];
        const Floats result = g.accumulate ? Floats::load_aligned(c + h * kLanes) + chain : chain;
        result.store_aligned(c + h * kLanes);
      }
    }
  }
}

/// One or two rows leave registers free for two units at a time: a chain is bound by the latency of the FMA, and memory
/// likes two streams.
template <Profile profile, int rows>
void run_few_rows(const Gemm& g) {
  const int units = g.n / kOutputs;
  int unit = 0;
  for (; unit + 2 <= units; unit += 2) run_block<profile, rows, 2>(g, 0, unit);
  if (unit < units) run_block<profile, rows, 1>(g, 0, unit);
}

template <Profile profile>
void run_many_rows(const Gemm& g) {
  const int64_t fitting = kRowBlockBytes / (int64_t{g.k} * 2) / kRows * kRows;
  const int rows_per_pass = fitting < kRows ? kRows : (fitting < g.m ? static_cast<int>(fitting) : g.m);
  for (int begin = 0; begin < g.m; begin += rows_per_pass) {
    const int end = g.m - begin < rows_per_pass ? g.m : begin + rows_per_pass;
    for (int unit = 0; unit < g.n / kOutputs; ++unit) {
      int row = begin;
      for (; row + kRows <= end; row += kRows) run_block<profile, kRows, 1>(g, row, unit);
      switch (end - row) {
        case 3: run_block<profile, 3, 1>(g, row, unit); break;
        case 2: run_block<profile, 2, 1>(g, row, unit); break;
        case 1: run_block<profile, 1, 1>(g, row, unit); break;
        default: break;
      }
    }
  }
}

template <Profile profile>
void gemm(const Gemm& g) {
  switch (g.m) {
    case 1: return run_few_rows<profile, 1>(g);
    case 2: return run_few_rows<profile, 2>(g);
    default: return run_many_rows<profile>(g);
  }
}

}  // namespace

void gemm_portable_dp(const Gemm& g) noexcept { gemm<Profile::kDp>(g); }
void gemm_portable_amx(const Gemm& g) noexcept { gemm<Profile::kAmx>(g); }

}  // namespace cpuinfer::kernels
