#include "kernels/isa.h"

#include <doctest/doctest.h>

using namespace cpuinfer;
using namespace cpuinfer::kernels;

namespace {

constexpr Isa kUpToAvx512 = Isa::kAvx2 | Isa::kAvx512;
constexpr Isa kEverything = kUpToAvx512 | Isa::kAvx512Bf16 | Isa::kAmxBf16;

}  // namespace

TEST_CASE("levels hold everything up to them") {
  CHECK(isa_level("reference") == Isa::kNone);
  CHECK(isa_level("avx2") == Isa::kAvx2);
  CHECK(isa_level("avx512") == kUpToAvx512);
  CHECK(isa_level("avx512_bf16") == (kUpToAvx512 | Isa::kAvx512Bf16));
  CHECK(isa_level("amx") == kEverything);
}

TEST_CASE("an unknown level is refused with the list of levels") {
  for (const char* name : {"avx", "AVX2", "", "avx512 "}) {
    const Result<Isa> level = isa_level(name);
    REQUIRE_FALSE(level);
    CHECK(level.error().code == ErrorCode::kUsage);
    CHECK(level.error().message == "unknown instruction set level \"" + std::string(name) +
                                       "\": expected one of reference, avx2, avx512, avx512_bf16, amx");
  }
  CHECK(cap_isa(kEverything, "sse").error().code == ErrorCode::kUsage);
}

TEST_CASE("a cap takes away, and never adds") {
  CHECK(cap_isa(kEverything, "reference") == Isa::kNone);
  CHECK(cap_isa(kEverything, "avx2") == Isa::kAvx2);
  CHECK(cap_isa(kEverything, "avx512") == kUpToAvx512);
  CHECK(cap_isa(kEverything, "amx") == kEverything);
  CHECK(cap_isa(kUpToAvx512, "avx512") == kUpToAvx512);
  CHECK(cap_isa(Isa::kNone, "reference") == Isa::kNone);

  const Result<Isa> more = cap_isa(kUpToAvx512, "amx");
  REQUIRE_FALSE(more);
  CHECK(more.error().code == ErrorCode::kUnsupported);
  CHECK(more.error().message ==
        "instruction set level \"amx\" needs avx2 avx512 avx512_bf16 amx, but this machine offers avx2 avx512: ask for "
        "a lower level or none");
  CHECK(cap_isa(Isa::kNone, "avx2").error().message ==
        "instruction set level \"avx2\" needs avx2, but this machine offers none: ask for a lower level or none");
}

TEST_CASE("names") {
  CHECK(isa_names(Isa::kNone) == "none");
  CHECK(isa_names(kUpToAvx512) == "avx2 avx512");
  CHECK(isa_names(kEverything) == "avx2 avx512 avx512_bf16 amx");
}

TEST_CASE("what this machine offers is a level: each group comes with the ones below it") {
  const Isa have = detect_isa();
  MESSAGE("this machine offers " << isa_names(have));
  bool is_level = false;
  for (const char* name : {"reference", "avx2", "avx512", "avx512_bf16", "amx"})
    is_level = is_level || isa_level(name) == have;
  CHECK(is_level);
  CHECK(detect_isa() == have);
}
