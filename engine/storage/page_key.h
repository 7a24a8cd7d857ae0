// PageKey: the name of a page of keys and values, made from all that its content depends on.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstring>
#include <functional>
#include <span>
#include <string>

#include "base/types.h"

namespace cpuinfer::storage {

/// 256 bits of BLAKE2b. Two pages with one key hold the same bits: nobody finds two texts with one key, by accident or
/// on purpose.
struct PageKey {
  std::array<std::byte, 32> bytes{};

  /// 64 hexadecimal digits.
  std::string hex() const;
  friend auto operator<=>(const PageKey&, const PageKey&) = default;
};

/// The key before the first page: `identity` describes everything but the tokens that keys and values depend on.
PageKey root_key(std::span<const std::byte> identity);

/// The key of the page that holds `tokens` and follows the page (or root) `parent`: it names all tokens from the first.
PageKey child_key(const PageKey& parent, std::span<const TokenId> tokens);

struct PageKeyHash {
  size_t operator()(const PageKey& key) const {
    size_t value;
    std::memcpy(&value, key.bytes.data(), sizeof(value));
    return value;
  }
};

}  // namespace cpuinfer::storage
