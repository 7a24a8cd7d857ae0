#include "kernels/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/format.h"
#include "base/log.h"

namespace cpuinfer::kernels {
namespace {

struct Level {
  std::string_view name;
  Isa isa;  // what this level adds
};
constexpr Level kLevels[] = {
    {"reference", Isa::kNone},         {"avx2", Isa::kAvx2},   {"avx512", Isa::kAvx512},
    {"avx512_bf16", Isa::kAvx512Bf16}, {"amx", Isa::kAmxBf16},
};

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};
/// All zero if the CPU does not have the leaf.
Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
  return r;
}
constexpr bool bit(unsigned value, int index) { return ((value >> index) & 1u) != 0; }

/// Register states that the operating system saves (XCR0). REQUIRES: CPUID.1:ECX.OSXSAVE.
uint64_t enabled_states() {
  uint32_t low = 0;
  uint32_t high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}
constexpr uint64_t kYmmStates = 0x6;       // XMM, YMM
constexpr uint64_t kZmmStates = 0xe6;      // and opmask, ZMM 0-15 upper halves, ZMM 16-31
constexpr uint64_t kTileStates = 0x60000;  // XTILECFG, XTILEDATA
constexpr int kTileDataState = 18;         // bit number of XTILEDATA
constexpr int kArchGetXcompSupp = 0x1021;  // Linux 5.16, asm/prctl.h; not in every libc's headers
constexpr int kArchReqXcompPerm = 0x1023;

/// Linux grants tile data per process, on request.
bool request_tile_permission() {
  uint64_t supported = 0;
  if (syscall(SYS_arch_prctl, kArchGetXcompSupp, &supported) != 0) return false;
  if ((supported >> kTileDataState & 1) == 0) return false;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileDataState) == 0;
}

std::string level_names() {
  std::string names;
  for (const Level& level : kLevels) names += format("{}{}", names.empty() ? "" : ", ", level.name);
  return names;
}

}  // namespace

Isa detect_isa() {
  const Registers leaf1 = cpuid(1, 0);
  if (!bit(leaf1.ecx, 27)) return Isa::kNone;  // OSXSAVE
  const uint64_t states = enabled_states();
  const Registers leaf7 = cpuid(7, 0);
  const Registers leaf7_1 = leaf7.eax >= 1 ? cpuid(7, 1) : Registers{};

  // Each group needs the ones before it: kernels of one folder use the flags of the lower ones.
  const bool f16c = bit(leaf1.ecx, 29);
  const bool fma = bit(leaf1.ecx, 12);
  const bool avx = bit(leaf1.ecx, 28);
  const bool avx2 = bit(leaf7.ebx, 5);
  if (!(avx && avx2 && fma && f16c) || (states & kYmmStates) != kYmmStates) return Isa::kNone;
  Isa isa = Isa::kAvx2;

  const bool f = bit(leaf7.ebx, 16);
  const bool dq = bit(leaf7.ebx, 17);
  const bool bw = bit(leaf7.ebx, 30);
  const bool vl = bit(leaf7.ebx, 31);
  if (!(f && dq && bw && vl) || (states & kZmmStates) != kZmmStates) return isa;
  isa = isa | Isa::kAvx512;

  if (!bit(leaf7_1.eax, 5)) return isa;  // AVX512_BF16
  isa = isa | Isa::kAvx512Bf16;

  const bool amx_bf16 = bit(leaf7.edx, 22);
  const bool amx_tile = bit(leaf7.edx, 24);
  if (!(amx_bf16 && amx_tile)) return isa;
  if ((states & kTileStates) != kTileStates || !request_tile_permission()) {
    log_info("this CPU has AMX, but the operating system does not let this process use tiles: running without AMX");
    return isa;
  }
  return isa | Isa::kAmxBf16;
}

Result<Isa> isa_level(std::string_view name) {
  Isa isa = Isa::kNone;
  for (const Level& level : kLevels) {
    isa = isa | level.isa;
    if (level.name == name) return isa;
  }
  return fail(ErrorCode::kUsage,
              format("unknown instruction set level \"{}\": expected one of {}", name, level_names()));
}

Result<Isa> cap_isa(Isa have, std::string_view level) {
  TRY_ASSIGN(const Isa wanted, isa_level(level));
  if (!covers(have, wanted))
    return fail(
        ErrorCode::kUnsupported,
        format("instruction set level \"{}\" needs {}, but this machine offers {}: ask for a lower level or none",
               level, isa_names(wanted), isa_names(have)));
  return have & wanted;
}

std::string isa_names(Isa isa) {
  std::string names;
  for (const Level& level : kLevels) {
    if (level.isa != Isa::kNone && covers(isa, level.isa))
      names += format("{}{}", names.empty() ? "" : " ", level.name);
  }
  return names.empty() ? "none" : names;
}

}  // namespace cpuinfer::kernels
