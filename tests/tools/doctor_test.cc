#include "tools/doctor.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <fstream>

#include "base/format.h"
#include "base/types.h"
#include "bench/host_report.h"
#include "kernels/registry.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;
using kernels::Isa;

namespace {

namespace fs = std::filesystem;

// 2 GiB of each node in pieces of 4 MiB, and little in small ones.
constexpr const char* kHealthyBuddies =
    "Node 0, zone      DMA      1      0      0      0      0      0      0      0      1      1      3\n"
    "Node 0, zone   Normal    100     10      1      0      0      0      0      0      0      1    512\n"
    "Node 1, zone   Normal    100     10      1      0      0      0      0      0      0      1    512\n";

constexpr Isa kServer = Isa::kAvx2 | Isa::kAvx512 | Isa::kAvx512Bf16 | Isa::kAmxBf16;

/// A healthy server with two nodes; its files are in a directory of this test.
class FakeMachine {
 public:
  explicit FakeMachine(const char* topology = "numa:2(memory=64GB) core:4 pu:2")
      : root_(fs::temp_directory_path() / format("cpuinfer_doctor_test_{}", getpid())),
        machine{.topology = synthetic(topology),
                .isa = kServer,
                .memory = {48_GiB, "the machine has it"},
                .huge_pages = {.transparent = "madvise"}} {
    fs::remove_all(root_);
    machine.root = root_;
    machine.workers = machine.topology.cores();
    machine.pinned = machine.workers;
    machine.open_files = 20000;
    write("proc/meminfo", "MemTotal: 1 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n");
    write("proc/loadavg", "0.10 0.20 0.30 1/100 4711\n");
    write("proc/cpuinfo", "processor : 0\nflags\t\t: fpu avx2 amx_bf16 amx_tile\n");
    write("proc/sys/kernel/numa_balancing", "0\n");
    write("proc/sys/vm/zone_reclaim_mode", "0\n");
    write("proc/buddyinfo", kHealthyBuddies);
    write("sys/devices/system/cpu/online", "0-15\n");
    for (int cpu = 0; cpu < 16; ++cpu)
      write(format("sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor", cpu), "performance\n");
  }
  ~FakeMachine() { fs::remove_all(root_); }

  void write(const fs::path& path, std::string_view text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  Check check(std::string_view name, const std::string& isa_level = "") const {
    const auto checks = diagnose(machine, isa_level);
    REQUIRE(checks.has_value());
    for (const Check& row : *checks)
      if (row.name == name) return row;
    FAIL("no such check: ", std::string(name));
    return {};
  }

 private:
  static numa::Topology synthetic(const char* text) {
    auto topology = numa::Topology::synthetic(text);
    REQUIRE(topology.has_value());
    return std::move(topology).value();
  }
  fs::path root_;

 public:
  Machine machine;
};

void expect(const Check& check, Health health, std::string_view detail, std::string_view fix) {
  CAPTURE(check.name);
  CHECK(check.health == health);
  CHECK(check.detail == detail);
  CHECK(check.fix == fix);
}

}  // namespace

TEST_CASE("a healthy server passes every check") {
  const FakeMachine fake;
  const auto checks = diagnose(fake.machine, "");
  REQUIRE(checks.has_value());
  CHECK(checks->size() == 18);
  CHECK(is_usable(*checks));
  for (const Check& check : *checks) {
    CAPTURE(check.name);
    CHECK(check.health == Health::kOk);
    CHECK(check.fix.empty());
    CHECK_FALSE(check.detail.empty());
  }
  expect(fake.check("cpu"), Health::kOk, "synthetic: 8 cores to use, 8 SMT siblings left idle", "");
  expect(fake.check("isa"), Health::kOk, "found avx2 avx512 avx512_bf16 amx", "");
  CHECK(fake.check("kernels").detail.starts_with("matrix products avx512-fma, amx-tile from 5 rows, the rest "));
  CHECK(fake.check("kernels").detail.find("(numerics amx); --gemm takes amx-tile, ") != std::string::npos);
  expect(fake.check("nodes"), Health::kOk,
         "node 0: 4 cores, 59.6 GiB (59.6 GiB free); node 1: 4 cores, 59.6 GiB (59.6 GiB free)", "");
  expect(fake.check("cpuset"), Health::kOk, "this process may use the memory of all nodes", "");
  expect(fake.check("balancing"), Health::kOk, "the kernel leaves pages on their nodes", "");
  expect(fake.check("reclaim"), Health::kOk, "full nodes use their neighbours", "");
  expect(fake.check("fragments"), Health::kOk, "free memory is in pieces large enough for huge pages", "");
  expect(fake.check("governor"), Health::kOk, "performance on 16 CPUs", "");
  expect(fake.check("limits"), Health::kOk, "20000 open files, address space unlimited", "");
  expect(fake.check("pinning"), Health::kOk, "8 threads, each on its own core", "");
  expect(fake.check("memory"), Health::kOk, "48.0 GiB can be used: the machine has it", "");
  expect(fake.check("hugepages"), Health::kOk, "transparent: madvise", "");
  expect(fake.check("speed"), Health::kOk, "not measured", "");
  expect(fake.check("load"), Health::kOk, "0.1 over the last minute on 16 CPUs", "");
}

TEST_CASE("instruction sets: the cap, too old a CPU, tiles that the system withholds") {
  FakeMachine fake;
  expect(fake.check("isa", "avx2"), Health::kOk, "found avx2 avx512 avx512_bf16 amx, capped to avx2", "");
  CHECK(fake.check("kernels", "avx2").detail.starts_with("matrix products portable, the rest portable (numerics dp)"));

  fake.machine.isa = Isa::kAvx2 | Isa::kAvx512 | Isa::kAvx512Bf16;
  expect(fake.check("isa"), Health::kWarn,
         "found avx2 avx512 avx512_bf16; the CPU has AMX tiles, but the system does not grant them",
         "use Linux 5.16 or later; in a virtual machine or sandbox, allow AMX (arch_prctl)");
  const auto unsupported = diagnose(fake.machine, "amx");
  REQUIRE_FALSE(unsupported.has_value());
  CHECK(unsupported.error().code == ErrorCode::kUnsupported);
  const auto unknown = diagnose(fake.machine, "mmx");
  REQUIRE_FALSE(unknown.has_value());
  CHECK(unknown.error().code == ErrorCode::kUsage);

  fake.machine.isa = Isa::kNone;
  expect(fake.check("isa"), Health::kFail, "found none, but AVX2 and FMA are needed",
         "use a machine with a newer CPU (Intel since 2013, AMD since 2015); in a virtual machine, pass the host's CPU "
         "through");
  CHECK_FALSE(is_usable(*diagnose(fake.machine, "")));
}

TEST_CASE("CPUs that this process may not use, or not all the time") {
  FakeMachine fake;
  fake.write("sys/devices/system/cpu/online", "0-15,32-47\n");
  expect(fake.check("affinity"), Health::kWarn, "this process may use 16 of 32 CPUs",
         "start it without taskset or numactl, and look at the cpuset of its container or service");

  fake.write("proc/self/cgroup", "0::/a/b\n");
  fake.write("sys/fs/cgroup/a/cpu.max", "250000 100000\n");
  fake.write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  expect(fake.check("quota"), Health::kWarn, "a control group allows 2.5 CPUs of time, fewer than the 8 cores",
         "raise its cpu.max, or run with --threads 2");
  fake.write("proc/self/cgroup", "3:cpu,cpuacct:/job\n");
  fake.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  fake.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  fake.write("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "50000\n");
  fake.write("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  expect(fake.check("quota"), Health::kWarn, "a control group allows 0.5 CPUs of time, fewer than the 8 cores",
         "raise its cpu.max, or run with --threads 1");
  fake.write("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "1600000\n");
  expect(fake.check("quota"), Health::kOk, "a control group allows 16.0 CPUs of time", "");

  fake.machine.pinned = 3;
  expect(fake.check("pinning"), Health::kWarn, "threads do not stay on their cores: the system refuses or ignores that",
         "allow sched_setaffinity in the sandbox or container; until then cpuinfer runs with --no-pin only");
}

TEST_CASE("what slows a machine down has a fix") {
  FakeMachine fake;
  fake.write("proc/sys/kernel/numa_balancing", "1\n");
  expect(fake.check("balancing"), Health::kWarn, "the kernel moves pages between nodes while cpuinfer runs",
         "sudo sysctl kernel.numa_balancing=0");
  fake.write("sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "powersave\n");
  expect(fake.check("governor"), Health::kWarn, "performance on 15 CPUs, powersave on 1 CPU",
         "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor");
  fake.write("proc/loadavg", "7.25 0 0\n");
  expect(fake.check("load"), Health::kWarn, "7.2 over the last minute on 16 CPUs: other programs compute here",
         "see who does with: top");
  fake.write("proc/meminfo", "SwapTotal: 2097152 kB\nSwapFree: 1048576 kB\n");
  expect(fake.check("swap"), Health::kWarn, "1.0 GiB of 2.0 GiB are in use: weights may be swapped out too",
         "end other programs, then: sudo swapoff -a && sudo swapon -a");
  fake.machine.memory = {100_MiB, "a control group says so"};
  expect(fake.check("memory"), Health::kWarn, "100.0 MiB can be used: a control group says so",
         "end other programs or raise the limit; `cpuinfer plan` says what a model needs");
  fake.machine.open_files = 256;
  expect(fake.check("limits"), Health::kWarn, "only 256 files may be open (ulimit -n)", "ulimit -n 1024");
  fake.machine.address_space = 4_GiB;
  expect(fake.check("limits"), Health::kWarn, "address space is limited to 4.0 GiB (ulimit -v)", "ulimit -v unlimited");
  fake.machine.huge_pages = {.reserved = {.total_2m = 512, .free_2m = 500, .total_1g = 4, .free_1g = 1},
                             .transparent = "never"};
  expect(
      fake.check("hugepages"), Health::kWarn,
      "transparent huge pages are off; 512 x 2 MiB and 4 x 1 GiB are reserved (500 and 1 free): weights take those of "
      "1 GiB, nothing those of 2 MiB",
      "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled");
  fake.machine.huge_pages = {};
  expect(fake.check("hugepages"), Health::kWarn, "this kernel has no transparent huge pages",
         "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE");
}

TEST_CASE("fragmented memory and zone reclaim") {
  FakeMachine fake;
  fake.write("proc/sys/vm/zone_reclaim_mode", "1\n");
  expect(
      fake.check("reclaim"), Health::kWarn,
      "a full node drops page cache instead of using its neighbour (vm.zone_reclaim_mode is 1), which stops programs "
      "for a while",
      "sudo sysctl vm.zone_reclaim_mode=0");
  // Node 1: 2 GiB in single pages, 512 MiB in pieces of 2 MiB.
  fake.write("proc/buddyinfo",
             "Node 0, zone   Normal    100     10      1      0      0      0      0      0      0      1    512\n"
             "Node 1, zone   Normal 524288      0      0      0      0      0      0      0      0    256      0\n");
  expect(fake.check("fragments"), Health::kWarn,
         "node 1: only 512.0 MiB of 2.5 GiB free memory are in pieces of 2 MiB or more, which huge pages need",
         "echo 1 | sudo tee /proc/sys/vm/compact_memory (after: echo 1 | sudo tee /proc/sys/vm/drop_caches)");
  // Too little is free to say anything: page cache fills the node.
  fake.write("proc/buddyinfo", "Node 0, zone   Normal 100000\nNode 1, zone Normal\nnonsense\nNode x, zone a 1\n");
  expect(fake.check("fragments"), Health::kOk, "free memory is in pieces large enough for huge pages", "");
}

TEST_CASE("nodes with memory only, with CPUs only, and memory that the cpuset forbids") {
  const auto node = [](int id, std::vector<numa::SystemCpu> cpus, int64_t bytes, bool allowed) {
    numa::SystemNode made;
    made.id = id;
    made.cpus = std::move(cpus);
    made.memory_bytes = bytes;
    made.allowed = allowed;
    return made;
  };
  const auto machine_of = [](std::vector<numa::SystemNode> nodes, std::vector<numa::SystemCpu> homeless) {
    auto topology = numa::Topology::from({.nodes = std::move(nodes), .homeless = std::move(homeless), .distances = {}});
    REQUIRE(topology.has_value());
    return std::move(topology).value();
  };
  FakeMachine fake;
  fake.machine.topology = machine_of({node(0, {{0, 0}, {1, 1}}, 8_GiB, true), node(1, {}, 64_GiB, true)}, {});
  expect(fake.check("nodes"), Health::kOk,
         "node 0: 2 cores, 8.0 GiB (8.0 GiB free); node 1: 64.0 GiB without CPUs, not used", "");
  fake.machine.topology = machine_of(
      {node(0, {{0, 0}}, 8_GiB, true), node(1, {{1, 1}, {2, 2}}, 0, true), node(2, {}, 8_GiB, false)}, {{7, 7}});
  expect(fake.check("nodes"), Health::kWarn,
         "node 0: 4 cores, 8.0 GiB (8.0 GiB free); node 1: CPUs 1-2 without memory, served by node 0; no node: CPU 7 "
         "without memory, served by node 0",
         "put memory into all nodes, or let the process's cpuset allow what they have (cpuset.mems)");
  expect(fake.check("cpuset"), Health::kWarn, "this process may not use the memory of node 2",
         "add 2 to cpuset.mems of its container or service (docker: --cpuset-mems)");
  auto hidden = numa::Topology::detect("/nonexistent");
  REQUIRE(hidden.has_value());
  fake.machine.topology = std::move(*hidden);
  fake.machine.isa = kernels::detect_isa();  // this is a real machine: its kernels are timed
  CHECK(fake.check("nodes").health == Health::kWarn);
  CHECK(fake.check("nodes").detail.find("(but /sys/devices/system/cpu cannot be read") != std::string::npos);
  CHECK(fake.check("nodes").fix == "let this process read /sys, or use --no-pin");
}

TEST_CASE("a system that says little is no problem") {
  FakeMachine fake("numa:1 core:2 pu:1");
  fs::remove_all(fake.machine.root);
  expect(fake.check("cpu"), Health::kOk, "synthetic: 2 cores to use", "");
  expect(fake.check("governor"), Health::kOk, "not set by this system (as in virtual machines)", "");
  expect(fake.check("load"), Health::kOk, "the system does not say", "");
  expect(fake.check("swap"), Health::kOk, "none", "");
  expect(fake.check("balancing"), Health::kOk, "one node", "");
  expect(fake.check("reclaim"), Health::kOk, "full nodes use their neighbours", "");
  expect(fake.check("fragments"), Health::kOk, "the system does not say", "");
  expect(fake.check("affinity"), Health::kOk, "this process may use all CPUs", "");
  expect(fake.check("quota"), Health::kOk, "no limit on CPU time", "");
}

TEST_CASE("the report as text and as JSON") {
  const std::vector<Check> checks = {{"cpu", Health::kOk, "good", ""}, {"load", Health::kWarn, "busy", "top"}};
  CHECK(report_text(checks) ==
        "ok    cpu        good\n"
        "warn  load       busy\n"
        "                 fix: top\n");
  CHECK(to_json_text(report_json(checks)) ==
        R"({"health":"warn","checks":[{"name":"cpu","health":"ok","detail":"good","fix":""},)"
        R"({"name":"load","health":"warn","detail":"busy","fix":"top"}]})");
  CHECK(is_usable(checks));
}

TEST_CASE("this machine can be examined") {
  const auto machine = inspect_machine();
  REQUIRE(machine.has_value());
  CHECK(machine->workers == machine->topology.cores());
  REQUIRE(machine->figures.has_value());
  CHECK(machine->figures->read.winner().rate.all > 0);
  const auto checks = diagnose(*machine, "");
  REQUIRE(checks.has_value());
  CHECK(is_usable(*checks));
  REQUIRE(checks->back().name == "speed");
  CHECK(checks->back().detail == bench::host_summary(*machine->figures) + " (`cpuinfer bench host` says more)");
  const auto capped = inspect_machine("avx2");
  REQUIRE(capped.has_value());
  CHECK(capped->figures->peaks.size() == 1);
  CHECK_FALSE(inspect_machine("reference")->figures.has_value());
  CHECK_FALSE(inspect_machine("", false)->figures.has_value());
  CHECK(inspect_machine("mmx").error().code == ErrorCode::kUsage);
}
