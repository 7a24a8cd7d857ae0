// THE lists of kernels, best first, reference last; and the choice among them.
#pragma once

#include <span>
#include <string_view>

#include "base/result.h"
#include "kernels/kernels.h"

namespace cpuinfer::kernels {

std::span<const GemmKernel> gemm_kernels();
std::span<const ElementwiseKernels> elementwise_kernels();

/// What the user may ask for; the defaults choose by the machine.
struct KernelRequest {
  std::string_view numerics = "auto";  ///< auto | dp | amx: auto is amx where tiles are usable, else dp
  std::string_view gemm = "auto";      ///< auto, or the name of a GemmKernel: it and its profile are used for every m
};

/// Where the choice may change: fewer rows of activations than this are bound by the weights' stream.
inline constexpr int kSmallM = 5;

/// The kernels of one engine: chosen once, then called through plain pointers.
struct Kernels {
  Profile profile;
  const GemmKernel* gemm_small;  ///< for m < kSmallM
  const GemmKernel* gemm_large;  ///< for m >= kSmallM
  const ElementwiseKernels* elementwise;

  const GemmKernel& gemm(int m) const;
};

/// Pure. The first row of each list that `have` covers and that fits the profile and m. kUsage for unknown names (with
/// the list of known ones) and for a gemm whose profile contradicts `numerics`; kUnsupported for a row that needs more
/// than `have`.
Result<Kernels> select_kernels(Isa have, const KernelRequest& request = {});

}  // namespace cpuinfer::kernels
