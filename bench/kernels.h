// Every kernel of the lists that a CPU has, beside what the machine can do and beside oneDNN.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "bench/elementwise.h"
#include "bench/gemm.h"
#include "bench/peaks.h"
#include "bench/read.h"
#include "kernels/registry.h"
#include "numa/team.h"

namespace cpuinfer::bench {

struct KernelBenchOptions {
  std::string shapes = "30b";  ///< see kernel_shapes()
  std::vector<int> rows;       ///< M; empty: 1, 2, 4, ..., 4096
  std::string kernel;          ///< only rows of this name, and oneDNN to compare; empty: all
  bool quick = false;          ///< small matrices, short samples: shows that it works, not how fast
};

/// Bytes of weights per node for the products to rotate over: four times the last-level cache, so that they come from
/// memory, but at most a quarter of what is free. In any case enough for every worker to have something to read.
int64_t weight_bytes_for(const numa::Team& team, bool quick);

struct KernelFigures {
  std::string cpu;
  int workers = 0;
  kernels::Isa isa = kernels::Isa::kNone;
  int64_t weight_bytes = 0;       ///< that the products rotate over, per node
  ReadEntry read;                 ///< how these workers read those weights fastest
  std::vector<PeakFigure> peaks;  ///< of these workers
  std::vector<KernelShape> shapes;
  std::vector<GemmCell> gemm;
  std::vector<ElementwiseCell> elementwise;
  std::vector<std::string> left_out;  ///< "amx-tile (amx): needs amx"; and the rule for slow rows
  const PeakFigure& highest_peak() const;
};

/// Measures on `team`. Errors: kUsage (unknown shapes or kernel), kUnsupported (the kernel asked for, or any, cannot
/// run within `isa`), kDoesNotFit, kInternal (a kernel's results are wrong), kInterrupted.
Result<KernelFigures> measure_kernels(numa::Team& team, const numa::Topology& topology, kernels::Isa isa,
                                      const KernelBenchOptions& options, const Watch& watch = {});

/// Tables; GB and GFLOP are powers of ten.
std::string kernels_text(const KernelFigures& figures);

/// {"cpu", "threads", "isa", "weight_bytes", "read_gb_s", "peaks": [{"name", "gflop_s"}],
///  "gemm": [{"shape", "n", "k", "m", "kernel", "profile", "us", "gb_s", "read_gb_s", "read_share", "gflop_s",
///  "peak_gflop_s", "peak_share",
///  "times_onednn" or null, "checked"}], "elementwise": [{"operation", "n", "kernels", "ns", "speedup"}],
///  "left_out": [...]}
Json kernels_json(const KernelFigures& figures);

}  // namespace cpuinfer::bench
