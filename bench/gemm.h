// Speed of the matrix kernels, each at the same products, with results verified.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "bench/kernel_shapes.h"
#include "bench/peaks.h"
#include "bench/read.h"
#include "kernels/kernels.h"
#include "numa/memory.h"
#include "numa/team.h"

namespace cpuinfer::bench {

/// Rows whose name is "reference" or ends in "-emulated" define and check; nobody waits for them. They run up to this
/// many rows of activations, at this many outputs.
inline constexpr int kSlowMostRows = 4;
inline constexpr int kSlowOutputs = 256;
bool is_slow_row(const kernels::GemmKernel& row);

struct GemmBenchOptions {
  std::vector<KernelShape> shapes;
  std::vector<int> rows;             ///< of activations: M
  double seconds = 0.05;             ///< per kernel, shape and M; a longer call runs once
  int64_t weight_bytes = 512 << 20;  ///< per node; the products rotate over them, so that they come from memory
};

/// What the machine can do, to be sampled in every round of a product: on a shared machine it changes all the time.
struct GemmLimits {
  ReadConfig read;                           ///< the fastest way to read the weights
  const kernels::PeakProbe* peak = nullptr;  ///< the highest peak
  double seconds = 0.008;                    ///< of each sample
};

/// One kernel at one product.
struct GemmCell {
  const kernels::GemmKernel* kernel = nullptr;
  size_t shape = 0;    ///< index into the shapes
  int m = 0, n = 0;    ///< n: outputs that were computed, fewer than the shape's for slow rows
  double seconds = 0;  ///< of one product by all workers: median of the rounds
  double bytes = 0;    ///< of weights
  double flops = 0;
  double read_rate = 0;  ///< bytes per second that the workers read in the same rounds: median
  double peak_rate = 0;  ///< flops per second of the highest peak in the same rounds: median
  double onednn = 0;     ///< how many times as fast as oneDNN at the same product in the same round; 0: no baseline
  int checked = 0;       ///< results that were compared
  double bytes_per_second() const { return bytes / seconds; }
  double flops_per_second() const { return flops / seconds; }
};

/// Owns weights and activations for products of up to the largest shape and M. Used by the thread that owns the team.
class GemmBench {
 public:
  /// Errors: kDoesNotFit, kUsage (weight_bytes without room for the largest shape).
  static Result<GemmBench> create(numa::Team& team, const numa::Topology& topology, GemmBenchOptions options);

  /// The weights, to measure with what the machine reads them.
  const ReadMemory& memory() const { return memory_; }

  /// Runs every kernel at every shape and M, in rounds of all kernels so that a disturbance hits all alike. Each worker
  /// computes its units of all products; nothing waits between products. After its last round each kernel's results are
  /// compared, for sampled rows and outputs, with the reference of its profile: bit by bit, or for Profile::kOneDnn
  /// within the bound of rounding errors k * 2^-23 * sum |a * w|.
  /// Errors: kInternal (other results, with where and what), kInterrupted.
  Result<std::vector<GemmCell>> run(std::span<const kernels::GemmKernel* const> kernels, const GemmLimits& limits,
                                    const Watch& watch = {});

 private:
  GemmBench(numa::Team& team, GemmBenchOptions options) : team_(&team), options_(std::move(options)) {}
  Result<void> run_product(std::span<GemmCell> cells, const KernelShape& shape, ReadSampler& reader,
                           const GemmLimits& limits, const Watch& watch);
  double round(const GemmCell& cell, const KernelShape& shape, double seconds);
  Result<int> verify(const GemmCell& cell, const KernelShape& shape);
  kernels::Gemm product(const GemmCell& cell, const KernelShape& shape, const numa::Worker& worker, int64_t matrix);

  /// Of one worker, on its own cache line.
  struct alignas(64) Place {
    numa::Worker worker;  // for its numbers only
    int64_t next = 0;     // matrix of the next product
    double seconds = 0;   // of one product, in the last round
    numa::NodeBuffer c;   // [m, outputs of this worker]
  };
  numa::Team* team_;
  GemmBenchOptions options_;
  std::vector<numa::NodeBuffer> weights_;  // per node
  ReadMemory memory_;
  numa::NodeBuffer a_;  // [most rows, most terms]
  std::vector<Place> places_;
};

}  // namespace cpuinfer::bench
