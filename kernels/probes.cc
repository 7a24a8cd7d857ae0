#include "kernels/probes.h"

#include "kernels/probe_loops.h"

namespace cpuinfer::kernels {
namespace {

// name, needs, flops of an iteration, run
constexpr PeakProbe kPeakProbes[] = {
    {"amx tdpbf16ps", Isa::kAvx512 | Isa::kAmxBf16, int64_t{kSumsAmx} * 16 * 16 * 32 * 2, peak_amx},
    {"vdpbf16ps", Isa::kAvx512 | Isa::kAvx512Bf16, int64_t{kSumsAvx512} * 16 * 2 * 2, peak_dp_avx512},
    {"fp32 FMA (avx512)", Isa::kAvx512, int64_t{kSumsAvx512} * 16 * 2, peak_fma_avx512},
    {"fp32 FMA (avx2)", Isa::kAvx2, int64_t{kSumsAvx2} * 8 * 2, peak_fma_avx2},
};

constexpr ReadProbe kReadProbes[] = {
    {"avx512", Isa::kAvx512, read_avx512},
    {"avx2", Isa::kAvx2, read_avx2},
};

}  // namespace

std::span<const PeakProbe> peak_probes() { return kPeakProbes; }
std::span<const ReadProbe> read_probes() { return kReadProbes; }

}  // namespace cpuinfer::kernels
