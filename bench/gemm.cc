#include "bench/gemm.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string_view>

#include "base/check.h"
#include "base/format.h"
#include "base/types.h"
#include "bench/timing.h"
#include "kernels/pack.h"
#include "kernels/registry.h"

namespace cpuinfer::bench {
namespace {

using kernels::Gemm;
using kernels::GemmKernel;
using kernels::kUnitOutputs;
using kernels::Profile;

constexpr int kRounds = 3;
constexpr double kFlopsBetweenClocks = 2e6;  // some 20 us: a clock takes 30 ns
constexpr int kMostCheckedRows = 8;

/// Values between 2^-7 and 2, of either sign and any such exponent: nothing overflows, nothing vanishes, and sums are
/// rounded, so that another order of additions shows. xorshift64 (Marsaglia 2003).
void fill_with_noise(bf16* values, int64_t count, uint64_t seed) {
  uint64_t state = 0x9e3779b97f4a7c15u * (seed + 1);
  for (int64_t i = 0; i < count; ++i) {
    if (i % 4 == 0) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
    }
    values[i] = bf16{static_cast<uint16_t>(0x3c00u | ((state >> (i % 4 * 16)) & 0x83ffu))};
  }
}

const GemmKernel& reference_of(Profile profile) {
  const Profile wanted = profile == Profile::kOneDnn ? Profile::kDp : profile;
  for (const GemmKernel& row : kernels::gemm_kernels())
    if (row.name == std::string_view("reference") && row.profile == wanted) return row;
  ENSURE(false, "every profile of the same-bits promise has a reference");
}

/// Up to `most` numbers below `count`, the first and the last among them.
std::vector<int32_t> sampled(int count, int most) {
  std::vector<int32_t> numbers;
  const int wanted = std::min(count, most);
  for (int i = 0; i < wanted; ++i)
    numbers.push_back(wanted == 1 ? 0 : static_cast<int32_t>(int64_t{count - 1} * i / (wanted - 1)));
  return numbers;
}

int64_t matrix_elements(const GemmCell& cell, const KernelShape& shape) { return int64_t{cell.n} * shape.k; }

}  // namespace

bool is_slow_row(const GemmKernel& row) {
  const std::string_view name = row.name;
  return name == "reference" || name.ends_with("-emulated");
}

Result<GemmBench> GemmBench::create(numa::Team& team, const numa::Topology& topology, GemmBenchOptions options) {
  int64_t a_elements = 0;
  int64_t c_bytes = 0;
  const int64_t most_rows = *std::max_element(options.rows.begin(), options.rows.end());
  for (const KernelShape& shape : options.shapes) {
    a_elements = std::max(a_elements, most_rows * shape.k);
    c_bytes = std::max(c_bytes, most_rows * shape.n * static_cast<int64_t>(sizeof(float)));
    const int64_t needed = int64_t{shape.n} * shape.k * static_cast<int64_t>(sizeof(bf16));
    if (needed > options.weight_bytes)
      return fail(ErrorCode::kUsage,
                  format("{} of weights have no room for {} ({} x {}: {})", format_bytes(options.weight_bytes),
                         shape.name, shape.n, shape.k, format_bytes(needed)));
  }
  GemmBench bench(team, std::move(options));
  TRY_ASSIGN(ReadBuffers buffers, make_read_buffers(team, topology, bench.options_.weight_bytes, numa::Pages::kHuge));
  bench.weights_ = std::move(buffers.buffers);
  bench.memory_ = std::move(buffers.memory);
  TRY_ASSIGN(bench.a_, numa::NodeBuffer::allocate(a_elements * static_cast<int64_t>(sizeof(bf16)), 0, topology));
  fill_with_noise(bench.a_.as<bf16>(), a_elements, 0);
  bench.places_.resize(static_cast<size_t>(team.workers()));
  team.run([&](numa::Worker& worker) {
    bench.places_[static_cast<size_t>(worker.rank)].worker = worker;
    for (const ReadSpan& span : bench.memory_.workers[static_cast<size_t>(worker.rank)])
      fill_with_noise(reinterpret_cast<bf16*>(const_cast<std::byte*>(span.data)),
                      span.bytes / static_cast<int64_t>(sizeof(bf16)), static_cast<uint64_t>(worker.rank) + 1);
  });
  for (Place& place : bench.places_) {
    // A share is a unit more than the even part at most.
    const int64_t bytes = c_bytes / team.workers() + most_rows * kUnitOutputs * static_cast<int64_t>(sizeof(float));
    TRY_ASSIGN(place.c, numa::NodeBuffer::allocate(bytes, place.worker.node, topology));
  }
  return bench;
}

Gemm GemmBench::product(const GemmCell& cell, const KernelShape& shape, const numa::Worker& worker, int64_t matrix) {
  const numa::Range units = worker.share(cell.n / kUnitOutputs);
  const int64_t matrices = options_.weight_bytes / static_cast<int64_t>(sizeof(bf16)) / matrix_elements(cell, shape);
  Gemm g;
  g.m = cell.m;
  g.n = static_cast<int>(units.count()) * kUnitOutputs;
  g.k = shape.k;
  g.a = a_.as<bf16>();
  g.a_stride = shape.k;
  g.w_unit_stride = kernels::unit_elements(shape.k);
  g.w = weights_[static_cast<size_t>(worker.node)].as<bf16>() + matrix % matrices * matrix_elements(cell, shape) +
        units.begin * g.w_unit_stride;
  g.c = places_[static_cast<size_t>(worker.rank)].c.as<float>();
  g.c_stride = g.n;
  return g;
}

double GemmBench::round(const GemmCell& cell, const KernelShape& shape, double seconds) {
  const double own_flops = cell.flops / team_->workers();
  const int batch = std::max(1, static_cast<int>(kFlopsBetweenClocks / own_flops));
  team_->run([&](numa::Worker& worker) {
    Place& place = places_[static_cast<size_t>(worker.rank)];
    Gemm g = product(cell, shape, worker, place.next);
    int64_t products = 0;
    double elapsed = 0;
    // What is left from another kernel must not pass for this one's result.
    for (const int32_t row : sampled(g.m, kMostCheckedRows))
      for (int j = 0; j < g.n; ++j) g.c[row * g.c_stride + j] = std::numeric_limits<float>::quiet_NaN();
    worker.barrier();
    if (g.n == 0) {
      place.seconds = 0;
      return;
    }
    const Clock::time_point start = Clock::now();
    do {
      for (int i = 0; i < batch; ++i) {
        g.w = product(cell, shape, worker, place.next++).w;
        cell.kernel->run(g);
      }
      products += batch;
      elapsed = seconds_since(start);
    } while (elapsed < seconds);
    place.seconds = elapsed / static_cast<double>(products);
  });
  double slowest = 0;
  for (const Place& place : places_) slowest = std::max(slowest, place.seconds);
  return slowest;
}

Result<int> GemmBench::verify(const GemmCell& cell, const KernelShape& shape) {
  const GemmKernel& reference = reference_of(cell.kernel->profile);
  const std::vector<int32_t> rows = sampled(cell.m, kMostCheckedRows);
  Result<int> checked = 0;
  // In a worker, for its floating-point mode.
  team_->run([&](numa::Worker& self) {
    if (self.rank != 0) return;
    for (const Place& place : places_) {
      const Gemm last = product(cell, shape, place.worker, place.next - 1);
      for (const int32_t unit : sampled(last.n / kUnitOutputs, 2)) {
        alignas(64) float expected[kMostCheckedRows * kUnitOutputs];
        Gemm g = last;
        g.m = static_cast<int>(rows.size());
        g.n = kUnitOutputs;
        g.a_rows = rows.data();
        g.w = last.w + unit * last.w_unit_stride;
        g.c = expected;
        g.c_stride = kUnitOutputs;
        reference.run(g);
        for (int r = 0; r < g.m; ++r) {
          const int32_t row = rows[static_cast<size_t>(r)];
          for (int j = 0; j < kUnitOutputs; ++j) {
            const float want = expected[r * kUnitOutputs + j];
            const float have = last.c[row * last.c_stride + unit * kUnitOutputs + j];
            bool good = std::bit_cast<uint32_t>(want) == std::bit_cast<uint32_t>(have);
            if (cell.kernel->profile == Profile::kOneDnn) {
              double magnitude = 0;
              for (int i = 0; i < shape.k; ++i)
                magnitude += std::fabs(to_float(last.a[row * last.a_stride + i]) *
                                       to_float(g.w[int64_t{i} / 2 * 32 + j * 2 + i % 2]));
              good = std::fabs(static_cast<double>(have) - want) <= magnitude * shape.k * 0x1p-23;
            }
            if (!good) {
              const numa::Range units = place.worker.share(cell.n / kUnitOutputs);
              checked = fail(ErrorCode::kInternal,
                             format("kernel {} ({}) computes other results than the reference: {} ({} x {}), M = {}, "
                                    "row {}, output {}: {} instead of {}; please report it",
                                    cell.kernel->name, kernels::profile_name(cell.kernel->profile), shape.name, cell.n,
                                    shape.k, cell.m, row, (units.begin + unit) * kUnitOutputs + j, have, want));
              return;
            }
            ++*checked;
          }
        }
      }
    }
  });
  return checked;
}

Result<void> GemmBench::run_product(std::span<GemmCell> cells, const KernelShape& shape, ReadSampler& reader,
                                    const GemmLimits& limits, const Watch& watch) {
  std::vector<std::vector<double>> seconds(cells.size());
  std::vector<std::vector<double>> ratios(cells.size());
  std::vector<double> spent(cells.size(), 0);
  std::vector<double> reads;
  std::vector<double> peaks;
  for (int r = 0; r < kRounds; ++r) {
    reads.push_back(reader.sample(limits.read, limits.seconds).all);
    peaks.push_back(sample_peak(*team_, *limits.peak, true, limits.seconds));
    // Flops per second in this round; 0: a slow kernel has had its time before.
    double baseline = 0;  // oneDNN's
    std::vector<double> rates(cells.size(), 0);
    for (size_t i = 0; i < cells.size(); ++i) {
      if (watch.cancelled()) return watch.check(0);
      const GemmCell& cell = cells[i];
      const bool onednn = cell.kernel->profile == Profile::kOneDnn;
      // oneDNN compiles at its first call; others touch their results' pages.
      if (r == 0 && (onednn || cell.flops < 1e9)) round(cell, shape, 0);
      if (r == 0 || spent[i] < options_.seconds) {
        const double seconds_per_product = round(cell, shape, options_.seconds / kRounds);
        seconds[i].push_back(seconds_per_product);
        rates[i] = cell.flops / seconds_per_product;
        spent[i] += std::max(seconds_per_product, options_.seconds / kRounds);
        TRY_ASSIGN(cells[i].checked, verify(cell, shape));
      }
      if (onednn) baseline = rates[i];
    }
    if (baseline == 0) continue;
    for (size_t i = 0; i < cells.size(); ++i)
      if (rates[i] > 0) ratios[i].push_back(rates[i] / baseline);
  }
  for (size_t i = 0; i < cells.size(); ++i) {
    cells[i].seconds = median(seconds[i]);
    cells[i].read_rate = median(reads);
    cells[i].peak_rate = median(peaks);
    if (!ratios[i].empty()) cells[i].onednn = median(ratios[i]);
  }
  return {};
}

Result<std::vector<GemmCell>> GemmBench::run(std::span<const GemmKernel* const> kernels, const GemmLimits& limits,
                                             const Watch& watch) {
  ReadSampler reader(*team_, memory_);
  std::vector<GemmCell> all;
  const auto products = static_cast<double>(options_.shapes.size() * options_.rows.size());
  for (size_t s = 0; s < options_.shapes.size(); ++s) {
    const KernelShape& shape = options_.shapes[s];
    for (size_t m = 0; m < options_.rows.size(); ++m) {
      TRY(watch.check(static_cast<double>(s * options_.rows.size() + m) / products));
      std::vector<GemmCell> cells;
      for (const GemmKernel* kernel : kernels) {
        const bool slow = is_slow_row(*kernel);
        if (slow && options_.rows[m] > kSlowMostRows) continue;
        GemmCell cell{.kernel = kernel, .shape = s, .m = options_.rows[m], .n = shape.n};
        if (slow) cell.n = std::min(cell.n, kSlowOutputs);
        cell.bytes = static_cast<double>(matrix_elements(cell, shape)) * sizeof(bf16);
        cell.flops = 2.0 * cell.m * static_cast<double>(matrix_elements(cell, shape));
        cells.push_back(cell);
      }
      TRY(run_product(cells, shape, reader, limits, watch));
      all.insert(all.end(), cells.begin(), cells.end());
    }
  }
  return all;
}

}  // namespace cpuinfer::bench
