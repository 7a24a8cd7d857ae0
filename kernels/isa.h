// Instruction sets that kernels need, and what this CPU and operating system offer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace cpuinfer::kernels {

/// A set of instruction-set groups, as bits.
enum class Isa : uint32_t {
  kNone = 0,
  kAvx2 = 1u << 0,        ///< AVX2, FMA, F16C; YMM state enabled by the OS
  kAvx512 = 1u << 1,      ///< AVX-512 F, BW, VL, DQ; ZMM state enabled by the OS
  kAvx512Bf16 = 1u << 2,  ///< AVX512_BF16 (VDPBF16PS, VCVTNEPS2BF16)
  kAmxBf16 = 1u << 3,     ///< AMX-TILE and AMX-BF16; tile state enabled by the OS and granted to this process
};

constexpr Isa operator|(Isa a, Isa b) { return static_cast<Isa>(static_cast<uint32_t>(a) | static_cast<uint32_t>(b)); }
constexpr Isa operator&(Isa a, Isa b) { return static_cast<Isa>(static_cast<uint32_t>(a) & static_cast<uint32_t>(b)); }
/// What is in `a` and not in `b`.
constexpr Isa without(Isa a, Isa b) { return static_cast<Isa>(static_cast<uint32_t>(a) & ~static_cast<uint32_t>(b)); }
/// True if `have` holds everything in `needs`.
constexpr bool covers(Isa have, Isa needs) { return (have & needs) == needs; }

/// What the CPU (CPUID) and the operating system (XCR0, ARCH_REQ_XCOMP_PERM for tiles) offer. Asking for the tile
/// permission is per process and must come before threads are made; call this once, early in main.
Isa detect_isa();

/// Levels in ascending order: "reference" (nothing: the scalar kernels), "avx2", "avx512", "avx512_bf16", "amx".
/// The set of everything up to the level; kUsage with the list of names for anything else.
Result<Isa> isa_level(std::string_view name);

/// `have` capped at the named level. Asking for more than the CPU has is an error (kUnsupported), never a silent
/// fallback.
Result<Isa> cap_isa(Isa have, std::string_view level);

/// "avx2 avx512 avx512_bf16 amx", or "none".
std::string isa_names(Isa isa);

}  // namespace cpuinfer::kernels
