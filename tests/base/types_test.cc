#include "base/types.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

using namespace cpuinfer;

TEST_CASE("to_bf16 rounds to nearest even") {
  CHECK(to_bf16(1.0f).bits == 0x3f80);
  CHECK(to_bf16(std::bit_cast<float>(0x3f808000u)).bits == 0x3f80);  // tie: even stays
  CHECK(to_bf16(std::bit_cast<float>(0x3f818000u)).bits == 0x3f82);  // tie: odd goes up
  CHECK(to_bf16(std::bit_cast<float>(0x3f808001u)).bits == 0x3f81);
  CHECK(to_bf16(std::numeric_limits<float>::max()).bits == 0x7f80);
  CHECK(to_bf16(-std::numeric_limits<float>::infinity()).bits == 0xff80);
  CHECK(std::isnan(to_float(to_bf16(std::nanf("")))));
}

TEST_CASE("to_bf16 flushes subnormals, as VCVTNEPS2BF16 does") {
  CHECK(to_bf16(1e-40f).bits == 0);
  CHECK(to_bf16(-1e-40f).bits == 0x8000);
}

TEST_CASE("format_bytes") {
  CHECK(format_bytes(512) == "512 B");
  CHECK(format_bytes(24 * 1_GiB) == "24.0 GiB");
  CHECK(format_bytes(1536) == "1.5 KiB");
}
