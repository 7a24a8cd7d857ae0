// The 16 lanes of the canonical sum (kernels/kernels.h) as two AVX2 registers, and the contracts' functions on them.
// Anonymous namespace: see kernels/reference/scalar.h.
#pragma once

#include <xsimd/xsimd.hpp>

#include "kernels/kernels.h"

namespace cpuinfer::kernels {
namespace {

using Arch = xsimd::fma3<xsimd::avx2>;
using Floats = xsimd::batch<float, Arch>;
using Words = xsimd::batch<int32_t, Arch>;
constexpr int kHalf = 8;
constexpr int kLanes = 16;

struct Lanes {
  Floats low = Floats(0.0f);
  Floats high = Floats(0.0f);

  Lanes() = default;
  explicit Lanes(float value) : low(value), high(value) {}
  Lanes(Floats low_half, Floats high_half) : low(low_half), high(high_half) {}
};

inline Lanes operator+(Lanes a, Lanes b) { return {a.low + b.low, a.high + b.high}; }
inline Lanes operator-(Lanes a, Lanes b) { return {a.low - b.low, a.high - b.high}; }
inline Lanes operator*(Lanes a, Lanes b) { return {a.low * b.low, a.high * b.high}; }
inline Lanes operator/(Lanes a, Lanes b) { return {a.low / b.low, a.high / b.high}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
  return {xsimd::fma(a.low, b.low, c.low), xsimd::fma(a.high, b.high, c.high)};
}
inline Lanes max(Lanes a, Lanes b) { return {xsimd::max(a.low, b.low), xsimd::max(a.high, b.high)}; }

/// The first `count` (1..16) elements at `p`, then `fill`. Reads nothing beyond them.
inline Lanes load(const float* p, int count = kLanes, float fill = 0.0f) {
  if (count >= kLanes) return {Floats::load_unaligned(p), Floats::load_unaligned(p + kHalf)};
  alignas(32) float staged[kLanes];
  for (int i = 0; i < kLanes; ++i) staged[i] = i < count ? p[i] : fill;
  return {Floats::load_aligned(staged), Floats::load_aligned(staged + kHalf)};
}

/// Rounds to bf16 as to_bf16 of base/types.h does and stores the first `count` lanes.
inline void store_bf16(Lanes value, bf16* out, int count = kLanes) {
  const auto round = [](Floats v) {
    const Words bits = xsimd::bitwise_cast<Words>(v);
    const Words magnitude = bits & Words(0x7fffffff);
    const Words upper = bits >> 16;  // the sign fills the rest, which is cut off below
    const Words rounded = (bits + Words(0x7fff) + (upper & Words(1))) >> 16;
    const Words flushed = xsimd::select(magnitude < Words(0x00800000), upper & Words(0x8000), rounded);
    return xsimd::select(magnitude > Words(0x7f800000), upper | Words(0x40), flushed);
  };
  alignas(32) uint32_t bits[kLanes];
  round(value.low).store_aligned(reinterpret_cast<int32_t*>(bits));
  round(value.high).store_aligned(reinterpret_cast<int32_t*>(bits + kHalf));
  if (count >= kLanes) {
    for (int i = 0; i < kLanes; ++i) out[i].bits = static_cast<uint16_t>(bits[i]);
  } else {
    for (int i = 0; i < count; ++i) out[i].bits = static_cast<uint16_t>(bits[i]);
  }
}

inline void store(Lanes value, float* out) {
  value.low.store_unaligned(out);
  value.high.store_unaligned(out + kHalf);
}

/// The folds that end a canonical sum.
inline float fold(Lanes value) {
  alignas(32) float lanes[kHalf];
  (value.low + value.high).store_aligned(lanes);
  for (int offset = kHalf / 2; offset > 0; offset /= 2)
    for (int i = 0; i < offset; ++i) lanes[i] = lanes[i] + lanes[i + offset];
  return lanes[0];
}

inline float largest(Lanes value) {
  alignas(32) float lanes[kHalf];
  xsimd::max(value.low, value.high).store_aligned(lanes);
  float max = lanes[0];
  for (int i = 1; i < kHalf; ++i) max = lanes[i] > max ? lanes[i] : max;
  return max;
}

inline Floats exp2(Floats x) {
  const Floats clamped = xsimd::min(Floats(127.0f), x);  // VMINPS gives its second operand if one is NaN
  const Floats t = xsimd::nearbyint(clamped);
  const Floats f = clamped - t;
  Floats p = Floats(kExp2Coefficients[6]);
  p = xsimd::fma(p, f, Floats(kExp2Coefficients[5]));
  p = xsimd::fma(p, f, Floats(kExp2Coefficients[4]));
  p = xsimd::fma(p, f, Floats(kExp2Coefficients[3]));
  p = xsimd::fma(p, f, Floats(kExp2Coefficients[2]));
  p = xsimd::fma(p, f, Floats(kExp2Coefficients[1]));
  p = xsimd::fma(p, f, Floats(kExp2Coefficients[0]));
  const Words exponent = xsimd::to_int(t) << 23;
  const Floats result = xsimd::bitwise_cast<Floats>(xsimd::bitwise_cast<Words>(p) + exponent);
  return xsimd::select(clamped < Floats(-126.0f), Floats(0.0f), result);
}
inline Lanes exp2(Lanes x) { return {exp2(x.low), exp2(x.high)}; }

}  // namespace
}  // namespace cpuinfer::kernels
