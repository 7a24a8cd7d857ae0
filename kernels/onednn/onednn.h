// oneDNN as one more row of the GEMM list: the baseline of benchmarks and an independent check of values. Its order of
// summation is its own (Profile::kOneDnn).
#pragma once

#include "kernels/kernels.h"

namespace cpuinfer::kernels {

/// Runs oneDNN in the calling thread alone. The packed weights are used where they are: they are oneDNN's BA16a16b2a.
/// Allocates (scratch and compiled primitives, kept per thread). oneDNN picks its instructions by itself, whatever
/// --isa says. If it fails (it reports errors by exceptions), says so once and computes with the reference instead.
void gemm_onednn(const Gemm&) noexcept;

}  // namespace cpuinfer::kernels
