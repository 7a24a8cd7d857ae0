// Scalar building blocks of the contracts. In an anonymous namespace because a kernel file may define no symbol that
// the linker could share with code built for other CPUs (base/types.h has the same conversions as inline functions).
#pragma once

#include "kernels/kernels.h"

namespace cpuinfer::kernels {
namespace {

inline float widen(bf16 value) { return __builtin_bit_cast(float, uint32_t{value.bits} << 16); }

/// to_bf16 of base/types.h.
inline bf16 narrow(float value) {
  const uint32_t u = __builtin_bit_cast(uint32_t, value);
  if ((u & 0x7fffffffu) > 0x7f800000u) return bf16{static_cast<uint16_t>((u >> 16) | 0x40u)};
  if ((u & 0x7f800000u) == 0) return bf16{static_cast<uint16_t>((u >> 16) & 0x8000u)};
  return bf16{static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

/// The folds that end a canonical sum. Overwrites `lanes`.
inline float fold16(float lanes[16]) {
  for (int offset = 8; offset > 0; offset /= 2)
    for (int i = 0; i < offset; ++i) lanes[i] = lanes[i] + lanes[i + offset];
  return lanes[0];
}

inline float sum16(const float* values, int n) {
  float lanes[16] = {};
  for (int i = 0; i < n; ++i) lanes[i % 16] = lanes[i % 16] + values[i];
  return fold16(lanes);
}

inline float exp2_contract(float x) {
  if (x != x) return x + x;  // int(NaN) is undefined in C++; the vector forms let the NaN run through
  if (x < -126.0f) return 0.0f;
  if (x > 127.0f) x = 127.0f;
  const float t = __builtin_rintf(x);
  const float f = x - t;
  float p = kExp2Coefficients[6];
  for (int i = 5; i >= 0; --i) p = __builtin_fmaf(p, f, kExp2Coefficients[i]);
  const uint32_t exponent = static_cast<uint32_t>(static_cast<int32_t>(t)) << 23;
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, p) + exponent);
}

}  // namespace
}  // namespace cpuinfer::kernels
