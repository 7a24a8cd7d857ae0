// Counter-based random numbers: the n-th number of a seed needs no earlier one.
#pragma once

#include <array>
#include <cstdint>

namespace cpuinfer::run {

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11): a block of four numbers from a
/// 128-bit counter and a 64-bit key. Pure.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// Uniform in [0, 1) with 53 bits, from (seed, position) alone: the same for any batch, restart or machine.
double uniform(uint64_t seed, uint64_t position);

}  // namespace cpuinfer::run
