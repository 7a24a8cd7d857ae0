#include "kernels/registry.h"

#include <algorithm>
#include <array>
#include <string>

#include "base/check.h"
#include "base/format.h"
#include "kernels/amx/amx.h"
#include "kernels/avx512/avx512.h"
#include "kernels/onednn/onednn.h"
#include "kernels/portable/portable.h"
#include "kernels/reference/reference.h"

namespace cpuinfer::kernels {
namespace {

constexpr Profile kDp = Profile::kDp;
constexpr Profile kAmx = Profile::kAmx;

// name, needs, profile, m_min, automatic, run
constexpr GemmKernel kGemmKernels[] = {
    // Tiles lose below five rows, where their setup costs more than the products (docs/performance.md).
    {"amx-tile", Isa::kAvx512 | Isa::kAmxBf16, kAmx, 5, true, gemm_amx_tiles},
    {"avx512-fma", Isa::kAvx512, kAmx, 1, true, gemm_avx512_fma_amx},
    {"avx512-fma", Isa::kAvx512, kDp, 1, true, gemm_avx512_fma_dp},
    {"avx512-dp", Isa::kAvx512 | Isa::kAvx512Bf16, kDp, 1, true, gemm_avx512_dp},
    {"portable", Isa::kAvx2, kAmx, 1, true, gemm_portable_amx},
    {"portable", Isa::kAvx2, kDp, 1, true, gemm_portable_dp},
    {"reference", Isa::kNone, kAmx, 1, true, gemm_reference_amx},
    {"reference", Isa::kNone, kDp, 1, true, gemm_reference_dp},
    {"amx-emulated", Isa::kAvx2, kAmx, 1, false, gemm_amx_emulated},
    // oneDNN 2.6 has bf16 for CPUs with AVX-512 only.
    {"onednn", Isa::kAvx512, Profile::kOneDnn, 1, false, gemm_onednn},
};

constexpr ElementwiseKernels kElementwiseKernels[] = {
    {"avx512-bf16", Isa::kAvx512 | Isa::kAvx512Bf16, rms_norm_avx512_bf16, norm_rope_avx512_bf16, silu_mul_avx512_bf16,
     softmax_leaf_avx512_bf16, merge_partial_avx512, finish_attention_avx512_bf16, scale_add_avx512},
    {"avx512", Isa::kAvx512, rms_norm_avx512, norm_rope_avx512, silu_mul_avx512, softmax_leaf_avx512,
     merge_partial_avx512, finish_attention_avx512, scale_add_avx512},
    {"portable", Isa::kAvx2, rms_norm_portable, norm_rope_portable, silu_mul_portable, softmax_leaf_portable,
     merge_partial_portable, finish_attention_portable, scale_add_portable},
    {"reference", Isa::kNone, rms_norm_reference, norm_rope_reference, silu_mul_reference, softmax_leaf_reference,
     merge_partial_reference, finish_attention_reference, scale_add_reference},
};

/// The names of the list, each once, in its order.
std::string gemm_names() {
  std::string names = "auto";
  for (size_t i = 0; i < std::size(kGemmKernels); ++i) {
    const std::string_view name = kGemmKernels[i].name;
    const auto same = [&](const GemmKernel& row) { return row.name == name; };
    if (std::none_of(kGemmKernels, kGemmKernels + i, same)) names += format(", {}", name);
  }
  return names;
}

const GemmKernel* find_gemm(std::string_view name, Profile profile) {
  for (const GemmKernel& row : kGemmKernels)
    if (row.name == name && row.profile == profile) return &row;
  return nullptr;
}

/// The best row for products of `m` rows. There always is one: the reference needs nothing.
const GemmKernel* best_gemm(Isa have, Profile profile, int m) {
  for (const GemmKernel& row : kGemmKernels)
    if (row.automatic && row.profile == profile && row.m_min <= m && covers(have, row.needs)) return &row;
  ENSURE(false, "each automatic profile has a GEMM row without needs");
}

const ElementwiseKernels* best_elementwise(Isa have) {
  for (const ElementwiseKernels& row : kElementwiseKernels)
    if (covers(have, row.needs)) return &row;
  ENSURE(false, "the last elementwise row has no needs");
}

/// The row asked for by name; the profile it is to have follows from `numerics`.
Result<const GemmKernel*> named_gemm(Isa have, const KernelRequest& request, Profile profile) {
  const GemmKernel* row = find_gemm(request.gemm, profile);
  if (row == nullptr) {
    const auto same = [&](const GemmKernel& other) { return other.name == request.gemm; };
    row = std::find_if(std::begin(kGemmKernels), std::end(kGemmKernels), same);
    if (row == std::end(kGemmKernels))
      return fail(ErrorCode::kUsage,
                  format("unknown GEMM kernel \"{}\": expected one of {}", request.gemm, gemm_names()));
    if (request.numerics != "auto")
      return fail(
          ErrorCode::kUsage,
          format("GEMM kernel \"{}\" computes the numeric profile \"{}\", but \"{}\" was asked for: drop one of "
                 "the two",
                 row->name, profile_name(row->profile), request.numerics));
  }
  if (const Isa missing = without(row->needs, have); missing != Isa::kNone)
    return fail(ErrorCode::kUnsupported, format("GEMM kernel \"{}\" needs {}, but this run may use {}", row->name,
                                                isa_names(missing), isa_names(have)));
  return row;
}

}  // namespace

const char* profile_name(Profile profile) {
  switch (profile) {
    case Profile::kDp: return "dp";
    case Profile::kAmx: return "amx";
    case Profile::kOneDnn: return "onednn";
  }
  return "";
}

std::span<const GemmKernel> gemm_kernels() { return kGemmKernels; }
std::span<const ElementwiseKernels> elementwise_kernels() { return kElementwiseKernels; }

std::string Kernels::describe_gemm() const {
  std::string text = gemm_of_class[0]->name;
  for (int i = 1; i < kRowClassCount; ++i) {
    if (gemm_of_class[i] != gemm_of_class[i - 1])
      text += format(", {} from {} rows", gemm_of_class[i]->name, kRowClasses[i]);
  }
  return text;
}

Result<Kernels> select_kernels(Isa have, const KernelRequest& request) {
  Profile profile = covers(have, Isa::kAmxBf16) ? kAmx : kDp;
  if (request.numerics == "dp") {
    profile = kDp;
  } else if (request.numerics == "amx") {
    profile = kAmx;
  } else if (request.numerics != "auto") {
    return fail(ErrorCode::kUsage,
                format("unknown numeric profile \"{}\": expected one of auto, dp, amx", request.numerics));
  }

  const ElementwiseKernels* elementwise = best_elementwise(have);
  Kernels kernels{profile, {}, elementwise};
  if (request.gemm == "auto") {
    for (int i = 0; i < kRowClassCount; ++i) kernels.gemm_of_class[i] = best_gemm(have, profile, kRowClasses[i]);
    return kernels;
  }
  TRY_ASSIGN(const GemmKernel* const row, named_gemm(have, request, profile));
  kernels.profile = row->profile;
  kernels.gemm_of_class.fill(row);
  return kernels;
}

}  // namespace cpuinfer::kernels
