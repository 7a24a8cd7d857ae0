#include "engine/storage/digest.h"

#include <doctest/doctest.h>

#include <vector>

using namespace cpuinfer;
using namespace cpuinfer::storage;

namespace {

// The test vectors of xxHash's own sanity check: byte i of its buffer.
std::vector<std::byte> sanity_buffer(size_t bytes) {
  std::vector<std::byte> buffer(bytes);
  uint64_t generator = 2654435761u;
  for (std::byte& byte : buffer) {
    byte = static_cast<std::byte>(generator >> 56);
    generator *= 11400714785074694797u;
  }
  return buffer;
}

}  // namespace

TEST_CASE("XXH3 gives the values of its specification") {
  CHECK(xxh3_64(std::span<const std::byte>()) == 0x2d06800538d394c2u);
  CHECK(xxh3_64(sanity_buffer(1)) == 0xc44bdff4074eecdbu);
  CHECK(xxh3_64(sanity_buffer(2048)) == 0xdd59e2c3a5f038e0u);
  const Digest128 empty = xxh3_128({});
  CHECK(empty.low == 0x6001c324468d497fu);
  CHECK(empty.high == 0x99aa06d3014798d8u);
  const Digest128 one = xxh3_128(sanity_buffer(1));
  CHECK(one.low == 0xc44bdff4074eecdbu);
  CHECK(one.high == 0xa6cd5e9392000f6au);
}

TEST_CASE("a seed or a bit changes a digest") {
  std::vector<std::byte> bytes = sanity_buffer(4096);
  const Digest128 before = xxh3_128(bytes);
  CHECK(xxh3_128(bytes, 1) != before);
  CHECK(xxh3_64("weight", 1) != xxh3_64("weight", 2));
  bytes[4000] ^= std::byte{1};
  CHECK(xxh3_128(bytes) != before);
}

TEST_CASE("digests are added modulo 2^128, in any order") {
  Digest128 sum = {.low = ~uint64_t{0}, .high = 1};
  sum += {.low = 1, .high = 0};
  CHECK(sum == Digest128{.low = 0, .high = 2});
  sum += {.low = 5, .high = ~uint64_t{0}};
  CHECK(sum == Digest128{.low = 5, .high = 1});
}

TEST_CASE("digests are written as 32 digits and read back") {
  const Digest128 digest = {.low = 0x0123456789abcdefu, .high = 0x00000000fedcba98u};
  CHECK(digest.hex() == "00000000fedcba980123456789abcdef");
  CHECK(parse_digest(digest.hex()) == digest);
  CHECK(!parse_digest(""));
  CHECK(!parse_digest("00000000fedcba980123456789abcde"));
  CHECK(!parse_digest("00000000fedcba980123456789abcdeg"));
  CHECK(!parse_digest("00000000FEDCBA980123456789ABCDEF"));
}
