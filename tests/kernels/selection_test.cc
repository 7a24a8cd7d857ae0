// Which kernels are chosen, for CPUs that we do not own too.
#include <doctest/doctest.h>

#include <ctime>
#include <iterator>
#include <set>
#include <string>
#include <tuple>

#include "kernels/registry.h"

using namespace cpuinfer;
using namespace cpuinfer::kernels;

namespace {

Isa level(const char* name) {
  const Result<Isa> isa = isa_level(name);
  REQUIRE(isa);
  return *isa;
}

/// "profile: gemm for few rows, gemm for many rows, elementwise", or the error.
std::string chosen(const char* have, const KernelRequest& request = {}) {
  const Result<Kernels> kernels = select_kernels(level(have), request);
  if (!kernels) {
    const bool usage = kernels.error().code == ErrorCode::kUsage;
    CHECK((usage || kernels.error().code == ErrorCode::kUnsupported));
    return (usage ? "usage: " : "unsupported: ") + kernels.error().message;
  }
  for (const GemmKernel* row : kernels->gemm_of_class) CHECK(row->profile == kernels->profile);
  return std::string(profile_name(kernels->profile)) + ": " + kernels->gemm(1).name + ", " + kernels->gemm(64).name +
         ", " + kernels->elementwise->name;
}

bool kernels_are_instrumented() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(NDEBUG)
  return true;
#else
  return false;
#endif
}

}  // namespace

TEST_CASE("the default takes the best row that the CPU has") {
  CHECK(chosen("reference") == "dp: reference, reference, reference");
  CHECK(chosen("avx2") == "dp: portable, portable, portable");
  CHECK(chosen("avx512") == "dp: avx512-fma, avx512-fma, avx512");
  CHECK(chosen("avx512_bf16") == "dp: avx512-fma, avx512-fma, avx512-bf16");
  CHECK(chosen("amx") == "amx: avx512-fma, amx-tile, avx512-bf16");
}

TEST_CASE("a numeric profile can be pinned on any CPU, so that a mixed fleet agrees") {
  CHECK(chosen("reference", {"amx", "auto"}) == "amx: reference, reference, reference");
  CHECK(chosen("avx2", {"amx", "auto"}) == "amx: portable, portable, portable");
  CHECK(chosen("avx512", {"amx", "auto"}) == "amx: avx512-fma, avx512-fma, avx512");
  CHECK(chosen("amx", {"dp", "auto"}) == "dp: avx512-fma, avx512-fma, avx512-bf16");
}

TEST_CASE("a row asked for by name is used for every m, in the profile that auto would have") {
  CHECK(chosen("amx", {"auto", "avx512-fma"}) == "amx: avx512-fma, avx512-fma, avx512-bf16");
  CHECK(chosen("avx512", {"auto", "avx512-fma"}) == "dp: avx512-fma, avx512-fma, avx512");
  CHECK(chosen("avx512", {"amx", "avx512-fma"}) == "amx: avx512-fma, avx512-fma, avx512");
  CHECK(chosen("amx", {"auto", "reference"}) == "amx: reference, reference, avx512-bf16");
  CHECK(chosen("amx", {"dp", "portable"}) == "dp: portable, portable, avx512-bf16");
  // The only profile that a row has.
  CHECK(chosen("amx", {"auto", "avx512-dp"}) == "dp: avx512-dp, avx512-dp, avx512-bf16");
  CHECK(chosen("avx512", {"auto", "amx-emulated"}) == "amx: amx-emulated, amx-emulated, avx512");
  CHECK(chosen("avx512_bf16", {"auto", "onednn"}) == "onednn: onednn, onednn, avx512-bf16");
}

TEST_CASE("requests that make no sense name what would") {
  CHECK(chosen("amx", {"fp16", "auto"}) == "usage: unknown numeric profile \"fp16\": expected one of auto, dp, amx");
  CHECK(chosen("amx", {"onednn", "auto"}) ==
        "usage: unknown numeric profile \"onednn\": expected one of auto, dp, amx");
  CHECK(chosen("amx", {"auto", "avx512"}) ==
        "usage: unknown GEMM kernel \"avx512\": expected one of auto, amx-tile, avx512-fma, avx512-dp, portable, "
        "reference, amx-emulated, onednn");
  CHECK(chosen("amx", {"amx", "avx512-dp"}) ==
        "usage: GEMM kernel \"avx512-dp\" computes the numeric profile \"dp\", but \"amx\" was asked for: drop one of "
        "the two");
  CHECK(chosen("amx", {"dp", "amx-tile"}) ==
        "usage: GEMM kernel \"amx-tile\" computes the numeric profile \"amx\", but \"dp\" was asked for: drop one of "
        "the two");
  CHECK(chosen("amx", {"dp", "onednn"}) ==
        "usage: GEMM kernel \"onednn\" computes the numeric profile \"onednn\", but \"dp\" was asked for: drop one of "
        "the two");
}

TEST_CASE("a row that needs more than the CPU has is refused, never replaced") {
  CHECK(chosen("avx512", {"auto", "avx512-dp"}) ==
        "unsupported: GEMM kernel \"avx512-dp\" needs avx512_bf16, but this run may use avx2 avx512");
  CHECK(chosen("avx512_bf16", {"auto", "amx-tile"}) ==
        "unsupported: GEMM kernel \"amx-tile\" needs amx, but this run may use avx2 avx512 "
        "avx512_bf16");
  CHECK(chosen("reference", {"auto", "portable"}) ==
        "unsupported: GEMM kernel \"portable\" needs avx2, but this run may use none");
}

TEST_CASE("gemm(m) follows the classes of rows") {
  CHECK(std::size(kRowClasses) == kRowClassCount);
  CHECK(row_class(1) == 0);
  for (int i = 1; i < kRowClassCount; ++i) {
    CHECK(row_class(kRowClasses[i] - 1) == i - 1);
    CHECK(row_class(kRowClasses[i]) == i);
  }
  CHECK(row_class(100000) == kRowClassCount - 1);
  const Result<Kernels> kernels = select_kernels(level("amx"));
  REQUIRE(kernels);
  CHECK(kernels->gemm(4).name == std::string("avx512-fma"));
  CHECK(kernels->gemm(5).name == std::string("amx-tile"));
  CHECK(kernels->describe_gemm() == "avx512-fma, amx-tile from 5 rows");
  CHECK(select_kernels(level("avx512"))->describe_gemm() == "avx512-fma");
}

TEST_CASE("the measured choice has the profile of the pure one, runs here, and takes under 0.2 s of one core") {
  const Isa have = detect_isa();
  for (const char* numerics : {"dp", "amx"}) {
    const KernelRequest request = {.numerics = numerics, .gemm = "auto"};
    const std::clock_t start = std::clock();
    const Result<Kernels> kernels = select_fastest_kernels(have, request);
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    REQUIRE(kernels);
    MESSAGE(std::string(numerics) << ": " << kernels->describe_gemm() << " in " << seconds << " s");
    CHECK(std::string(profile_name(kernels->profile)) == numerics);
    for (const GemmKernel* row : kernels->gemm_of_class) {
      REQUIRE(row != nullptr);
      CHECK(row->profile == kernels->profile);
      CHECK(row->automatic);
      CHECK(covers(have, row->needs));
    }
    // A sanitizer's build is many times slower.
    if (covers(have, Isa::kAvx512) && !kernels_are_instrumented()) CHECK(seconds < 0.2);
  }
}

TEST_CASE("the measured choice leaves a row that was asked for by name, and refuses what the pure one refuses") {
  const Result<Kernels> named = select_fastest_kernels(detect_isa(), {.numerics = "dp", .gemm = "reference"});
  REQUIRE(named);
  CHECK(named->describe_gemm() == "reference");
  CHECK(!select_fastest_kernels(detect_isa(), {.numerics = "fp16"}));
}

TEST_CASE("the lists are well-formed") {
  std::set<std::pair<std::string, Profile>> keys;
  for (const GemmKernel& row : gemm_kernels()) {
    CHECK((row.run != nullptr));
    CHECK(row.m_min >= 1);
    CHECK_MESSAGE(keys.emplace(row.name, row.profile).second, row.name << " is twice in one profile");
  }
  // Tests and selection rely on the references being there and needing nothing.
  for (const Profile profile : {Profile::kDp, Profile::kAmx}) CHECK(keys.contains({"reference", profile}));
  CHECK(std::string(elementwise_kernels().back().name) == "reference");
  CHECK(elementwise_kernels().back().needs == Isa::kNone);
  for (const ElementwiseKernels& row : elementwise_kernels()) {
    CHECK((row.rms_norm != nullptr));
    CHECK((row.norm_rope != nullptr));
    CHECK((row.silu_mul != nullptr));
    CHECK((row.softmax_leaf != nullptr));
    CHECK((row.merge_partial != nullptr));
    CHECK((row.finish_attention != nullptr));
    CHECK((row.scale_add != nullptr));
  }
}
