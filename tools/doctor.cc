#include "tools/doctor.h"

#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>

#include "base/format.h"
#include "base/log.h"
#include "base/types.h"
#include "bench/host_report.h"
#include "kernels/registry.h"
#include "numa/cpu_list.h"
#include "numa/team.h"
#include "tools/doctor_checks.h"
#include "tools/doctor_nodes.h"

namespace cpuinfer::tools {
namespace {

namespace fs = std::filesystem;
using kernels::Isa;

const char* health_name(Health health) {
  return health == Health::kOk ? "ok" : health == Health::kWarn ? "warn" : "fail";
}

/// "MemAvailable:   123 kB" and the like, in bytes.
std::optional<int64_t> meminfo_bytes(const fs::path& root, std::string_view key) {
  std::ifstream file(root / "proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    int64_t kib = 0;
    if (words >> name >> kib && name == format("{}:", key)) return kib * 1024;
  }
  return std::nullopt;
}

Check check_cpu(const Machine& machine) {
  const numa::Topology& topology = machine.topology;
  const int siblings = topology.cpus() - topology.cores();
  return ok("cpu", format("{}: {} core{} to use{}", topology.cpu_model(), topology.cores(), plural(topology.cores()),
                          siblings > 0 ? format(", {} SMT sibling{} left idle", siblings, plural(siblings)) : ""));
}

Check check_isa(const Machine& machine, Isa used, const std::string& isa_level) {
  if (!covers(machine.isa, Isa::kAvx2))
    return broken("isa", format("found {}, but AVX2 and FMA are needed", kernels::isa_names(machine.isa)),
                  "use a machine with a newer CPU (Intel since 2013, AMD since 2015); in a virtual machine, pass the "
                  "host's CPU through");
  // The flag says that the CPU has tiles; the missing bit says that the system does not grant them.
  std::ifstream cpuinfo(machine.root / "proc/cpuinfo");
  bool cpu_has_tiles = false;
  for (std::string line; std::getline(cpuinfo, line) && !cpu_has_tiles;)
    cpu_has_tiles = line.starts_with("flags") && line.find(" amx_bf16") != line.npos;
  const std::string found = kernels::isa_names(machine.isa);
  if (cpu_has_tiles && !covers(machine.isa, Isa::kAmxBf16))
    return warn("isa", format("found {}; the CPU has AMX tiles, but the system does not grant them", found),
                "use Linux 5.16 or later; in a virtual machine or sandbox, allow AMX (arch_prctl)");
  if (!isa_level.empty()) return ok("isa", format("found {}, capped to {}", found, kernels::isa_names(used)));
  return ok("isa", format("found {}", found));
}

Check check_kernels(const Machine& machine, Isa used) {
  // A machine that is not there cannot be measured.
  const Result<kernels::Kernels> chosen =
      machine.topology.is_this_machine() ? kernels::select_fastest_kernels(used) : kernels::select_kernels(used);
  if (!chosen) return broken("kernels", chosen.error().message, "see the line above");
  // A name may have a row for each profile.
  std::vector<std::string_view> names;
  for (const kernels::GemmKernel& row : kernels::gemm_kernels())
    if (covers(used, row.needs) && std::find(names.begin(), names.end(), row.name) == names.end())
      names.emplace_back(row.name);
  return ok("kernels",
            format("matrix products {}, the rest {} (numerics {}); --gemm takes {}", chosen->describe_gemm(),
                   chosen->elementwise->name, kernels::profile_name(chosen->profile), fmt::join(names, ", ")));
}

Check check_cpus_allowed(const Machine& machine) {
  const auto listed = numa::parse_list(first_line(machine.root / "sys/devices/system/cpu/online"));
  const int online = listed ? static_cast<int>(listed->size()) : 0;
  const int usable = machine.topology.cpus();
  if (online > usable)
    return warn("affinity", format("this process may use {} of {} CPUs", usable, online),
                "start it without taskset or numactl, and look at the cpuset of its container or service");
  return ok("affinity", "this process may use all CPUs");
}

/// CPU time that control groups allow, in CPUs; nothing if they set no limit. Looks at the mount's own group and the
/// process's ancestors (v2: cpu.max "QUOTA PERIOD", v1: cpu.cfs_quota_us and cpu.cfs_period_us).
std::optional<double> cpu_quota(const fs::path& root) {
  std::optional<double> least;
  const auto take = [&](double quota, double period) {
    if (quota > 0 && period > 0 && (!least || quota / period < *least)) least = quota / period;
  };
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t colon = line.find(':');
    const size_t path_at = colon == line.npos ? line.npos : line.find(':', colon + 1);
    if (path_at == line.npos) continue;
    const std::string controllers = line.substr(colon + 1, path_at - colon - 1);
    fs::path group = fs::path(line.substr(path_at + 1)).relative_path().lexically_normal();
    for (;; group = group.parent_path()) {
      if (controllers.empty()) {
        double quota = 0;
        double period = 0;
        std::ifstream file(root / "sys/fs/cgroup" / group / "cpu.max");
        if (file >> quota >> period) take(quota, period);
      } else if (controllers == "cpu" || controllers == "cpu,cpuacct" || controllers == "cpuacct,cpu") {
        const fs::path directory = root / "sys/fs/cgroup/cpu" / group;
        double quota = 0;
        double period = 0;
        std::ifstream quota_file(directory / "cpu.cfs_quota_us");
        std::ifstream period_file(directory / "cpu.cfs_period_us");
        if (quota_file >> quota && period_file >> period) take(quota, period);
      }
      if (group.empty()) break;
    }
  }
  return least;
}

Check check_quota(const Machine& machine) {
  const std::optional<double> quota = cpu_quota(machine.root);
  const int cores = machine.topology.cores();
  if (quota && *quota < cores)
    return warn("quota", format("a control group allows {:.1f} CPUs of time, fewer than the {} cores", *quota, cores),
                format("raise its cpu.max, or run with --threads {}", std::max(1, static_cast<int>(*quota))));
  return ok("quota", quota ? format("a control group allows {:.1f} CPUs of time", *quota) : "no limit on CPU time");
}

Check check_pinning(const Machine& machine) {
  if (machine.pinned < machine.workers)
    return warn("pinning", "threads do not stay on their cores: the system refuses or ignores that",
                "allow sched_setaffinity in the sandbox or container; until then cpuinfer runs with --no-pin only");
  return ok("pinning", format("{} thread{}, each on its own core", machine.workers, plural(machine.workers)));
}

Check check_memory(const Machine& machine) {
  const std::string text = format("{} can be used: {}", format_bytes(machine.memory.bytes), machine.memory.reason);
  if (machine.memory.bytes < 1_GiB)
    return warn("memory", text, "end other programs or raise the limit; `cpuinfer plan` says what a model needs");
  return ok("memory", text);
}

Check check_swap(const Machine& machine) {
  const int64_t total = meminfo_bytes(machine.root, "SwapTotal").value_or(0);
  const int64_t used = total - meminfo_bytes(machine.root, "SwapFree").value_or(total);
  if (used > 256_MiB)
    return warn("swap",
                format("{} of {} are in use: weights may be swapped out too", format_bytes(used), format_bytes(total)),
                "end other programs, then: sudo swapoff -a && sudo swapon -a");
  return ok("swap", total == 0 ? "none" : format("{}, {} in use", format_bytes(total), format_bytes(used)));
}

Check check_huge_pages(const Machine& machine) {
  const numa::HugePages& pages = machine.huge_pages;
  const std::string reserved =
      pages.reserved.total_2m + pages.reserved.total_1g == 0
          ? ""
          : format(
                "; {} x 2 MiB and {} x 1 GiB are reserved ({} and {} free): weights take those of 1 GiB, nothing "
                "those of 2 MiB",
                pages.reserved.total_2m, pages.reserved.total_1g, pages.reserved.free_2m, pages.reserved.free_1g);
  if (pages.transparent == "never")
    return warn("hugepages", format("transparent huge pages are off{}", reserved),
                "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled");
  if (pages.transparent.empty())
    return warn("hugepages", format("this kernel has no transparent huge pages{}", reserved),
                "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE");
  return ok("hugepages", format("transparent: {}{}", pages.transparent, reserved));
}

Check check_governor(const Machine& machine) {
  std::map<std::string, int> governors;
  std::error_code error;
  for (fs::directory_iterator it(machine.root / "sys/devices/system/cpu", error), end; !error && it != end;
       it.increment(error)) {
    const std::string governor = first_line(it->path() / "cpufreq/scaling_governor");
    if (!governor.empty()) ++governors[governor];
  }
  if (governors.empty()) return ok("governor", "not set by this system (as in virtual machines)");
  int slow = 0;
  std::string text;
  for (const auto& [name, count] : governors) {
    if (name != "performance") slow += count;
    text += format("{}{} on {} CPU{}", text.empty() ? "" : ", ", name, count, plural(count));
  }
  if (slow > 0)
    return warn("governor", text, "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor");
  return ok("governor", text);
}

Check check_load(const Machine& machine) {
  double load = 0;
  std::ifstream file(machine.root / "proc/loadavg");
  if (!(file >> load)) return ok("load", "the system does not say");
  const std::string text = format("{:.1f} over the last minute on {} CPUs", load, machine.topology.cpus());
  // Workers wait for each other, so one busy CPU slows all of them.
  if (load >= 1.0) return warn("load", text + ": other programs compute here", "see who does with: top");
  return ok("load", text);
}

Check check_speed(const Machine& machine) {
  if (!machine.figures) return ok("speed", "not measured");
  return ok("speed", bench::host_summary(*machine.figures) + " (`cpuinfer bench host` says more)");
}

Check check_limits(const Machine& machine) {
  // Large checkpoints have more than a hundred files, all open while loading.
  constexpr int64_t kFiles = 512;
  if (machine.address_space >= 0)
    return warn("limits", format("address space is limited to {} (ulimit -v)", format_bytes(machine.address_space)),
                "ulimit -v unlimited");
  if (machine.open_files >= 0 && machine.open_files < kFiles)
    return warn("limits", format("only {} files may be open (ulimit -n)", machine.open_files),
                format("ulimit -n {}", 2 * kFiles));
  return ok("limits", machine.open_files < 0 ? "none on open files and address space"
                                             : format("{} open files, address space unlimited", machine.open_files));
}

int64_t limit_of(__rlimit_resource resource) {
  rlimit limit{};
  if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return -1;
  return static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, INT64_MAX));
}

}  // namespace

Result<Machine> inspect_machine(const std::string& isa_level, bool measure, const bench::HostWatch& watch) {
  const Isa isa = kernels::detect_isa();
  Isa used = isa;
  if (!isa_level.empty()) {
    TRY_ASSIGN(used, kernels::cap_isa(isa, isa_level));
  }
  TRY_ASSIGN(numa::Topology topology, numa::Topology::detect());
  // A refused pinning is a finding of its own.
  Result<std::unique_ptr<numa::Team>> pinned = numa::Team::create(topology);
  if (!pinned) pinned = numa::Team::create(topology.unpinned());
  TRY_ASSIGN(const std::unique_ptr<numa::Team> team, std::move(pinned));
  numa::HugePages huge_pages = topology.huge_pages();
  Machine machine{.topology = std::move(topology),
                  .isa = isa,
                  .memory = numa::available_memory(),
                  .huge_pages = std::move(huge_pages)};
  machine.workers = team->workers();
  machine.pinned = team->pinned();
  machine.open_files = limit_of(RLIMIT_NOFILE);
  machine.address_space = limit_of(RLIMIT_AS);
  if (measure && covers(used, Isa::kAvx2)) {
    const bench::HostOptions options{.effort = bench::Effort::kShort, .model = {}, .disk_directory = {}};
    Result<bench::HostFigures> figures = bench::measure_host(*team, machine.topology, used, options, watch);
    // Too little memory to measure with is a finding of another check.
    if (figures)
      machine.figures = std::move(*figures);
    else if (figures.error().code != ErrorCode::kDoesNotFit)
      return std::unexpected(std::move(figures).error());
  }
  return machine;
}

Result<std::vector<Check>> diagnose(const Machine& machine, const std::string& isa_level) {
  Isa used = machine.isa;
  if (!isa_level.empty()) {
    TRY_ASSIGN(used, kernels::cap_isa(machine.isa, isa_level));
  }
  std::vector<Check> checks = {check_cpu(machine),           check_isa(machine, used, isa_level),
                               check_kernels(machine, used), check_cpus_allowed(machine),
                               check_quota(machine),         check_pinning(machine)};
  std::ranges::move(check_memory_nodes(machine), std::back_inserter(checks));
  checks.push_back(check_memory(machine));
  checks.push_back(check_swap(machine));
  checks.push_back(check_huge_pages(machine));
  checks.push_back(check_governor(machine));
  checks.push_back(check_load(machine));
  checks.push_back(check_limits(machine));
  checks.push_back(check_speed(machine));
  return checks;
}

std::string report_text(const std::vector<Check>& checks) {
  std::string text;
  for (const Check& check : checks) {
    text += format("{:<4}  {:<9}  {}\n", health_name(check.health), check.name, check.detail);
    if (!check.fix.empty()) text += format("{:<15}  fix: {}\n", "", check.fix);
  }
  return text;
}

Json report_json(const std::vector<Check>& checks) {
  Health worst = Health::kOk;
  Json list(Json::Array{});
  for (const Check& check : checks) {
    worst = std::max(worst, check.health);
    Json row;
    row.set("name", check.name);
    row.set("health", health_name(check.health));
    row.set("detail", check.detail);
    row.set("fix", check.fix);
    list.push_back(std::move(row));
  }
  Json report;
  report.set("health", health_name(worst));
  report.set("checks", std::move(list));
  return report;
}

bool is_usable(const std::vector<Check>& checks) {
  return std::none_of(checks.begin(), checks.end(), [](const Check& check) { return check.health == Health::kFail; });
}

}  // namespace cpuinfer::tools
