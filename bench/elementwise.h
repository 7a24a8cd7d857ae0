// Speed of the kernels that are no matrix product, on one thread and data in the caches, with results verified.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "bench/read.h"
#include "kernels/kernels.h"

namespace cpuinfer::bench {

/// One operation of one set of kernels.
struct ElementwiseCell {
  const kernels::ElementwiseKernels* kernels = nullptr;
  std::string operation;   ///< "rms_norm"
  int n = 0;               ///< elements of a call
  double nanoseconds = 0;  ///< of a call: median
  double speedup = 0;      ///< over the last set given, which is the reference in the list of all
};

/// Times every operation of every set at the sizes of Qwen3-30B-A3B (hidden 2048, head_dim 128, intermediate 768) for
/// about `seconds` each, and compares all its results bit by bit with those of the last set.
/// REQUIRES: at least one set; all can run here. Errors: kInternal (other results), kInterrupted.
Result<std::vector<ElementwiseCell>> measure_elementwise(numa::Team& team,
                                                         std::span<const kernels::ElementwiseKernels* const> sets,
                                                         double seconds, const Watch& watch = {});

}  // namespace cpuinfer::bench
