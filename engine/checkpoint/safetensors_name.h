// Rules that reading and writing a safetensors file share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "base/types.h"

namespace cpuinfer::checkpoint {

/// The one member of the header that is no tensor.
inline constexpr std::string_view kMetadataName = "__metadata__";

/// The most dimensions of a tensor; Qwen3's have 2. The format sets no bound, and a hostile shape may have millions.
inline constexpr size_t kMaxRank = 8;

/// What is wrong with the name, or "". (UTF-8 is checked by the JSON parser and writer.)
inline std::string_view tensor_name_fault(std::string_view name) {
  if (name.empty()) return "the name is empty";
  const auto is_control = [](unsigned char c) { return c < 0x20 || c == 0x7f; };
  if (std::any_of(name.begin(), name.end(), is_control)) return "the name holds a control character";
  return "";
}

/// product(shape) * element size, or nothing when that does not fit int64_t. REQUIRES: dimensions >= 0.
/// As in the reference implementation an overflow counts even if a later dimension is 0.
inline std::optional<int64_t> tensor_bytes(DType dtype, std::span<const int64_t> shape) {
  int64_t bytes = dtype_bytes(dtype);
  for (const int64_t size : shape)
    if (__builtin_mul_overflow(bytes, size, &bytes)) return std::nullopt;
  return bytes;
}

}  // namespace cpuinfer::checkpoint
