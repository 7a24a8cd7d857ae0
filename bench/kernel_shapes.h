// The matrices of published models that kernels are measured at.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace cpuinfer::bench {

/// One matrix of a model, or the part of it that one kernel call computes.
struct KernelShape {
  std::string name;  ///< "30b qkv"
  int n = 0;         ///< outputs, multiple of 16
  int k = 0;         ///< terms, multiple of 32
};

/// "30b": Qwen3-30B-A3B. "235b": Qwen3-235B-A22B. "all": both, equal shapes once. Per attention group and leaf of 256
/// tokens the products of attention; lm_head cut to 8192 of its outputs. Errors: kUsage.
Result<std::vector<KernelShape>> kernel_shapes(std::string_view models);

}  // namespace cpuinfer::bench
