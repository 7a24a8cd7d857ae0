// The vocabulary of every layer: bf16, data types, token ids, byte counts.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>

namespace cpuinfer {

using TokenId = int32_t;

/// bfloat16 as bits: the upper half of an IEEE binary32. Trivial; bf16{} is +0.
struct bf16 {
  uint16_t bits;
  friend bool operator==(bf16, bf16) = default;
};
static_assert(sizeof(bf16) == 2);

inline float to_float(bf16 value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }

/// Rounds to nearest even; subnormal inputs become zero (as VCVTNEPS2BF16 does); NaN stays a quiet NaN.
inline bf16 to_bf16(float value) {
  const uint32_t u = std::bit_cast<uint32_t>(value);
  if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{static_cast<uint16_t>((u >> 16) | 0x40u)};
  if ((u & 0x7f800000u) == 0) return bf16{static_cast<uint16_t>((u >> 16) & 0x8000u)};
  return bf16{static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

/// Element types that a checkpoint may hold.
enum class DType { kBF16, kF16, kF32 };

inline int dtype_bytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }
inline const char* dtype_name(DType dtype) {
  return dtype == DType::kBF16 ? "BF16" : dtype == DType::kF16 ? "F16" : "F32";
}

inline constexpr int64_t operator""_KiB(unsigned long long n) { return static_cast<int64_t>(n << 10); }
inline constexpr int64_t operator""_MiB(unsigned long long n) { return static_cast<int64_t>(n << 20); }
inline constexpr int64_t operator""_GiB(unsigned long long n) { return static_cast<int64_t>(n << 30); }

/// "56.9 GiB", "512 B": for tables and messages.
std::string format_bytes(int64_t bytes);

template <typename T>
constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}
template <typename T>
constexpr T round_up(T a, T b) {
  return ceil_div(a, b) * b;
}

}  // namespace cpuinfer
