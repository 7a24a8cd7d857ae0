// Matrix product with AMX tiles (Profile::kAmx). Contract: kernels/kernels.h.
#pragma once

#include "kernels/kernels.h"

namespace cpuinfer::kernels {

/// Runs on the tiles of the CPU. Loads the tile configuration that it needs unless the thread has it already, and
/// leaves it loaded: a thread that goes idle for long should execute TILERELEASE.
void gemm_amx_tiles(const Gemm& gemm) noexcept;

/// The same code on tiles emulated by AVX2 and FMA, for tests on any CPU. Traps where the CPU would raise #UD or #GP.
void gemm_amx_emulated(const Gemm& gemm) noexcept;

}  // namespace cpuinfer::kernels
