// Checksums of what lies on disk: XXH3 of xxHash, which is as fast as memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace cpuinfer::storage {

/// 128 bits. Trivial; Digest128{} is zero.
struct Digest128 {
  uint64_t low = 0, high = 0;
  friend bool operator==(Digest128, Digest128) = default;
  /// Modulo 2^128: the digest of a set, in whatever order its parts are added.
  Digest128& operator+=(Digest128 other) {
    low += other.low;
    high += other.high + (low < other.low ? 1 : 0);
    return *this;
  }
  /// 32 hexadecimal digits, the high half first.
  std::string hex() const;
};

/// What hex() gives; nullopt for anything else.
std::optional<Digest128> parse_digest(std::string_view hex);

/// XXH3 (Collet, "XXH3, a new speed-optimized hash algorithm", 2019; stable since xxHash 0.8): the same on every
/// machine and in every version of the library. Against damage, not against forgery. Pure, thread-safe, no allocation.
Digest128 xxh3_128(std::span<const std::byte> bytes, uint64_t seed = 0);
uint64_t xxh3_64(std::span<const std::byte> bytes, uint64_t seed = 0);
inline uint64_t xxh3_64(std::string_view text, uint64_t seed = 0) {
  return xxh3_64(std::as_bytes(std::span(text.data(), text.size())), seed);
}

}  // namespace cpuinfer::storage
