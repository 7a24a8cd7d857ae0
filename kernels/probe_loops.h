// The loops behind kernels/probes.h, each in its instruction set's folder.
#pragma once

#include "kernels/probes.h"

namespace cpuinfer::kernels {

/// Sums of the peak loops: registers less those of the two operands, rounded down to what is even.
constexpr int kSumsAvx512 = 24;
constexpr int kSumsAvx2 = 12;
constexpr int kSumsAmx = 4;

float peak_fma_avx512(int64_t iterations) noexcept;
float peak_dp_avx512(int64_t iterations) noexcept;
float peak_amx(int64_t iterations) noexcept;
float peak_fma_avx2(int64_t iterations) noexcept;

uint64_t read_avx512(const std::byte* data, int64_t bytes, const ReadPattern& pattern) noexcept;
uint64_t read_avx2(const std::byte* data, int64_t bytes, const ReadPattern& pattern) noexcept;

}  // namespace cpuinfer::kernels
