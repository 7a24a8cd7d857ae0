// THE lists of kernels, likely best first, reference last; and the choice among them.
#pragma once

#include <array>
#include <span>
#include <string>
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

/// Products of like numbers of rows share a kernel: class i begins at kRowClasses[i] rows.
inline constexpr int kRowClasses[] = {1, 2, 3, 5, 9, 17};
inline constexpr int kRowClassCount = 6;
/// The class of products of m >= 1 rows.
constexpr int row_class(int m) {
  int index = kRowClassCount - 1;
  while (kRowClasses[index] > m) --index;
  return index;
}

/// The kernels of one engine: chosen once, then called through plain pointers.
struct Kernels {
  Profile profile;
  std::array<const GemmKernel*, kRowClassCount> gemm_of_class;
  const ElementwiseKernels* elementwise;

  const GemmKernel& gemm(int m) const { return *gemm_of_class[row_class(m)]; }
  /// "avx512-fma, amx-tile from 5 rows": the matrix products for people.
  std::string describe_gemm() const;
};

/// Pure. The first row of each list that `have` covers and that fits the profile and m. kUsage for unknown names (with
/// the list of known ones) and for a gemm whose profile contradicts `numerics`; kUnsupported for a row that needs more
/// than `have`.
Result<Kernels> select_kernels(Isa have, const KernelRequest& request = {});

/// As select_kernels, but where several rows of the list give the same bits on this CPU the fastest is taken for each
/// class of rows, by timing products on one thread: under 0.2 s. Which one that is never changes a bit.
/// REQUIRES: the CPU has `have`.
Result<Kernels> select_fastest_kernels(Isa have, const KernelRequest& request = {});

}  // namespace cpuinfer::kernels
