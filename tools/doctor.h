// cpuinfer doctor: is this machine set up so that cpuinfer runs well?
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "bench/host.h"
#include "kernels/isa.h"
#include "numa/memory_limit.h"
#include "numa/topology.h"

namespace cpuinfer::tools {

/// What the checks look at. Everything else comes from files below `root`.
struct Machine {
  numa::Topology topology;
  kernels::Isa isa = kernels::Isa::kNone;  ///< what the CPU and the system offer
  numa::MemoryLimit memory;
  numa::HugePages huge_pages;
  int workers = 0;                                           ///< threads of a default team
  int pinned = 0;                                            ///< those of them that stayed where they were put
  int64_t open_files = -1;                                   ///< RLIMIT_NOFILE, -1: unlimited
  int64_t address_space = -1;                                ///< RLIMIT_AS in bytes, -1: unlimited
  std::optional<bench::HostFigures> figures = std::nullopt;  ///< what a short measurement gave; absent: there was none
  std::filesystem::path root = "/";                          ///< /proc and /sys are looked up below it
};

/// This machine; if `measure`, measures its speed for about a second with the instruction sets up to `isa_level` ("":
/// all).
/// Errors: kRuntime, kUsage and kUnsupported (isa_level), kInterrupted.
Result<Machine> inspect_machine(const std::string& isa_level = "", bool measure = true,
                                const bench::HostWatch& watch = {});

enum class Health {
  kOk,
  kWarn,  ///< cpuinfer runs, but slower or with less memory than it could
  kFail,  ///< cpuinfer does not run
};

/// One line of the report.
struct Check {
  std::string name;  ///< one word
  Health health = Health::kOk;
  std::string detail;  ///< what was found
  std::string fix;     ///< a command, or what to do; "" if all is well
};

/// All checks, in the order of the report. `isa_level` caps the instruction sets as --isa does ("": no cap).
/// Pure but for the files below machine.root. Errors: kUsage, kUnsupported (isa_level).
Result<std::vector<Check>> diagnose(const Machine& machine, const std::string& isa_level);

/// "ok    cpu         ...": a line per check, and the fix under each that is not ok.
std::string report_text(const std::vector<Check>& checks);
/// {"health": worst, "checks": [{"name", "health", "detail", "fix"}]}
Json report_json(const std::vector<Check>& checks);
/// False if any check failed.
bool is_usable(const std::vector<Check>& checks);

}  // namespace cpuinfer::tools
