#include "numa/topology.h"

#include <doctest/doctest.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "base/format.h"
#include "base/types.h"
#include "numa/cpu_list.h"

using namespace cpuinfer;
namespace fs = std::filesystem;
using numa::list_text;
using numa::Node;
using numa::SystemCpu;
using numa::SystemNode;
using numa::SystemNodes;
using numa::Topology;

namespace {

/// The CPUs that process `pid` may use; 0 is the calling thread.
std::vector<int> allowed_cpus(pid_t pid = 0) {
  cpu_set_t mask;
  REQUIRE(sched_getaffinity(pid, sizeof(mask), &mask) == 0);
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &mask)) cpus.push_back(cpu);
  return cpus;
}

std::vector<int> all_cpus(const Topology& topology) {
  std::vector<int> cpus;
  for (const Node& node : topology.nodes()) cpus.insert(cpus.end(), node.cpus.begin(), node.cpus.end());
  std::sort(cpus.begin(), cpus.end());
  return cpus;
}

}  // namespace

TEST_CASE("detect() finds exactly the CPUs this thread may use") {
  const auto topology = Topology::detect();
  REQUIRE(topology.has_value());
  CHECK(topology->is_this_machine());
  CHECK(all_cpus(*topology) == allowed_cpus());
  CHECK(topology->cpus() == static_cast<int>(allowed_cpus().size()));
  CHECK(topology->cores() >= 1);
  CHECK(topology->cores() <= topology->cpus());
  CHECK_FALSE(topology->cpu_model().empty());
  for (const Node& node : topology->nodes()) {
    CHECK(node.memory_bytes > 0);
    CHECK(node.free_bytes > 0);
    CHECK(node.free_bytes <= node.memory_bytes);
    CHECK(node.cores >= 1);
    CHECK(node.cores <= static_cast<int>(node.cpus.size()));
  }
  const std::set<std::string> modes = {"", "always", "madvise", "never"};
  CHECK(modes.contains(topology->huge_pages().transparent));
}

TEST_CASE("detect() honours the affinity mask") {
  cpu_set_t before;
  REQUIRE(sched_getaffinity(0, sizeof(before), &before) == 0);
  for (int cpu : allowed_cpus()) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    REQUIRE(sched_setaffinity(0, sizeof(one), &one) == 0);
    const auto topology = Topology::detect();
    sched_setaffinity(0, sizeof(before), &before);
    REQUIRE(topology.has_value());
    CHECK(all_cpus(*topology) == std::vector<int>{cpu});
    CHECK(topology->nodes().size() == 1);
    CHECK(topology->cores() == 1);
  }
}

// Run by its own ctest case with OMP_PROC_BIND=true in the environment, which OpenMP reads before main().
TEST_CASE("detect() finds all CPUs although OpenMP has bound the initial thread" * doctest::skip()) {
  const auto topology = Topology::detect();
  REQUIRE(topology.has_value());
  CHECK(all_cpus(*topology) == allowed_cpus(getppid()));
}

TEST_CASE("synthetic machines have the nodes, cores and siblings asked for") {
  const auto two = Topology::synthetic("numa:2 core:4 pu:1");
  REQUIRE(two.has_value());
  CHECK_FALSE(two->is_this_machine());
  REQUIRE(two->nodes().size() == 2);
  CHECK(two->cores() == 8);
  CHECK(two->nodes()[0].cpus == std::vector<int>{0, 1, 2, 3});
  CHECK(two->nodes()[1].cpus == std::vector<int>{4, 5, 6, 7});
  CHECK(two->home(0).id == 0);
  CHECK(two->home(1).id == 1);
  CHECK(two->home(5).id == 1);  // a simulated node goes around

  const auto packages = Topology::synthetic("pack:2 numa:3 core:3 pu:2");
  REQUIRE(packages.has_value());
  REQUIRE(packages->nodes().size() == 6);
  CHECK(packages->cores() == 18);
  CHECK(packages->cpus() == 36);
  // One CPU of each core first: siblings are neighbours in this numbering.
  CHECK(packages->nodes()[0].cpus == std::vector<int>{0, 2, 4, 1, 3, 5});
  CHECK(packages->nodes()[0].cores == 3);

  const auto sized = Topology::synthetic("numa:2(memory=64GB) core:8 pu:2");
  REQUIRE(sized.has_value());
  CHECK(sized->nodes()[1].memory_bytes == 64'000'000'000);
  CHECK(sized->nodes()[1].free_bytes == sized->nodes()[1].memory_bytes);
}

TEST_CASE("a description that describes nothing is a usage error with an example") {
  for (const char* text : {"", "nodes:2", "numa:0", "numa:x", "core:-4"}) {
    const auto result = Topology::synthetic(text);
    REQUIRE_FALSE(result.has_value());
    CHECK(result.error().code == ErrorCode::kUsage);
    CHECK(result.error().message.find("numa:2 core:8 pu:2") != std::string::npos);
  }
}

TEST_CASE("a machine of one node has all of the system's memory on it") {
  const auto topology = Topology::detect();
  REQUIRE(topology);
  if (std::filesystem::exists("/sys/devices/system/node/node1")) {
    MESSAGE("SKIPPED: this machine has several memory nodes");
    return;
  }
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  int64_t total_kib = 0;
  file >> key >> total_kib >> unit;
  REQUIRE(key == "MemTotal:");
  CHECK(topology->nodes().front().memory_bytes >= total_kib * 1024);
}

namespace {

/// `count` CPUs from `first` on, `siblings` of each core next to each other.
std::vector<SystemCpu> cpus(int first, int count, int siblings = 1) {
  std::vector<SystemCpu> made;
  for (int cpu = first; cpu < first + count; ++cpu) made.push_back({cpu, cpu / siblings});
  return made;
}

SystemNode node(int id, std::vector<SystemCpu> of_node, int64_t memory_bytes) {
  SystemNode made;
  made.id = id;
  made.cpus = std::move(of_node);
  made.memory_bytes = memory_bytes;
  return made;
}

Topology made(SystemNodes system) {
  auto topology = Topology::from(std::move(system));
  REQUIRE_MESSAGE(topology.has_value(), (topology ? "" : topology.error().message));
  return std::move(topology).value();
}

std::string refusal(const Topology& topology, const std::vector<int>& nodes, const std::vector<int>& cpu_ids) {
  const auto part = topology.restricted(nodes, cpu_ids);
  REQUIRE_FALSE(part.has_value());
  CHECK(part.error().code == ErrorCode::kUsage);
  return part.error().message;
}

/// A directory that looks like the root of a machine.
class FakeRoot {
 public:
  FakeRoot() : root_(fs::temp_directory_path() / format("cpuinfer_topology_test_{}", getpid())) {
    fs::remove_all(root_);
    write("sys/devices/system/cpu/online", "0-3\n");
  }
  ~FakeRoot() { fs::remove_all(root_); }
  void write(const fs::path& path, std::string_view text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  void write_node(int id, std::string_view cpu_list, int64_t mib, std::string_view distances) {
    const fs::path directory = format("sys/devices/system/node/node{}", id);
    write(directory / "cpulist", format("{}\n", cpu_list));
    write(directory / "distance", format("{}\n", distances));
    write(directory / "meminfo",
          format("Node {0} MemTotal: {1} kB\nNode {0} MemFree: {2} kB\nNode {0} Active(file): 1024 kB\n", id,
                 mib * 1024, mib * 512));
  }
  const fs::path& path() const { return root_; }

 private:
  fs::path root_;
};

}  // namespace

TEST_CASE("a machine too large to be described is refused at once") {
  for (const char* text :
       {"numa:2 core:20000 pu:1", "numa:64 core:512 pu:2", "pack:99999999999 numa:2 core:8 pu:1", "2 20000 1"}) {
    const auto topology = Topology::synthetic(text);
    REQUIRE_FALSE(topology.has_value());
    CHECK(topology.error().code == ErrorCode::kUsage);
    CHECK(topology.error().message.find(" CPUs; it must be at most 16384") != std::string::npos);
  }
  CHECK(Topology::synthetic("numa:8(memory=64GB) core:128 pu:2").has_value());
}

TEST_CASE("distances as the firmware says, 10 and 20 where it says nothing") {
  const Topology told = made({.nodes = {node(0, cpus(0, 2), 1_GiB), node(2, cpus(2, 2), 1_GiB), node(5, {}, 1_GiB)},
                              .homeless = {},
                              .distances = {{10, 21, 14}, {21, 10, 24}, {14, 24, 10}}});
  CHECK(told.distance(0, 0) == 10);
  CHECK(told.distance(0, 1) == 21);
  CHECK(told.distance_of_ids(2, 5) == 24);
  CHECK(told.distance_of_ids(0, 7) == 20);
  const auto untold = Topology::synthetic("numa:2 core:2 pu:1");
  REQUIRE(untold.has_value());
  CHECK(untold->distance(1, 1) == 10);
  CHECK(untold->distance(1, 0) == 20);
}

TEST_CASE("nodes with memory but no CPU are listed, and nothing else") {
  const Topology topology =
      made({.nodes = {node(0, cpus(0, 4, 2), 64_GiB), node(1, cpus(4, 4, 2), 64_GiB), node(2, {}, 128_GiB)},
            .homeless = {},
            .distances = {}});
  CHECK(topology.nodes().size() == 2);
  CHECK(topology.cores() == 4);
  REQUIRE(topology.memory_only().size() == 1);
  CHECK(topology.memory_only()[0].id == 2);
  CHECK(topology.memory_only()[0].memory_bytes == 128_GiB);
  CHECK(topology.memoryless().empty());

  // HBM beside the same cores: hwloc attaches both memories to them.
  const auto hbm = Topology::synthetic("pack:2 [numa(memory=64GB)] [numa(memory=16GB)] core:4 pu:2");
  REQUIRE(hbm.has_value());
  CHECK(hbm->nodes().size() == 2);
  CHECK(hbm->cpus() == 16);
  CHECK(hbm->memory_only().size() == 2);
}

TEST_CASE("SNC and NPS splits are nodes like others") {
  const auto snc = Topology::synthetic("pack:2 die:1 numa:4(memory=64GB) core:14 pu:2");
  REQUIRE(snc.has_value());
  REQUIRE(snc->nodes().size() == 8);
  for (const Node& part : snc->nodes()) {
    CHECK(part.cores == 14);
    CHECK(part.cpus.size() == 28);
  }
}

TEST_CASE("CPUs of a node without memory belong to the nearest node that has some, physical cores first") {
  const Topology topology =
      made({.nodes = {node(0, cpus(0, 4, 2), 1_GiB), node(1, cpus(4, 4, 2), 0), node(2, cpus(8, 4, 2), 1_GiB)},
            .homeless = {},
            .distances = {{10, 30, 20}, {30, 10, 12}, {20, 12, 10}}});
  REQUIRE(topology.nodes().size() == 2);
  CHECK(topology.nodes()[0].cpus == std::vector<int>{0, 2, 1, 3});
  CHECK(topology.nodes()[1].id == 2);
  CHECK(topology.nodes()[1].cpus == std::vector<int>{8, 10, 4, 6, 9, 11, 5, 7});
  CHECK(topology.nodes()[1].cores == 4);
  REQUIRE(topology.memoryless().size() == 1);
  CHECK(topology.memoryless()[0].id == 1);
  CHECK(topology.memoryless()[0].cpus == std::vector<int>{4, 5, 6, 7});
  CHECK(topology.memoryless()[0].served_by == 2);
  CHECK(topology.unreachable_memory().empty());
}

TEST_CASE("memory that the cpuset forbids, and CPUs in no node") {
  SystemNode forbidden = node(1, cpus(2, 2), 8_GiB);
  forbidden.allowed = false;
  const Topology topology =
      made({.nodes = {node(0, cpus(0, 2), 8_GiB), forbidden}, .homeless = cpus(7, 1), .distances = {}});
  REQUIRE(topology.nodes().size() == 1);
  CHECK(topology.nodes()[0].cpus == std::vector<int>{0, 1, 2, 3, 7});
  REQUIRE(topology.unreachable_memory().size() == 1);
  CHECK(topology.unreachable_memory()[0] == 1);
  REQUIRE(topology.memoryless().size() == 2);
  CHECK(topology.memoryless()[1].id == -1);
  CHECK(topology.memoryless()[1].served_by == 0);

  // CPUs of node 1 only, memory of nodes 0 and 2 only: the nearer of them computes.
  const Topology apart = made({.nodes = {node(0, {}, 8_GiB), forbidden, node(2, {}, 8_GiB)},
                               .homeless = {},
                               .distances = {{10, 21, 20}, {21, 10, 12}, {20, 12, 10}}});
  REQUIRE(apart.nodes().size() == 1);
  CHECK(apart.nodes()[0].id == 2);
  CHECK(apart.nodes()[0].cpus == std::vector<int>{2, 3});
  CHECK(apart.memory_only().size() == 1);
}

TEST_CASE("a machine without CPUs or without memory is an error, one that hides its sizes is not") {
  for (SystemNodes system :
       {SystemNodes{}, SystemNodes{.nodes = {node(0, {}, 1_GiB)}, .homeless = {}, .distances = {}}}) {
    const auto topology = Topology::from(system);
    REQUIRE_FALSE(topology.has_value());
    CHECK(topology.error().code == ErrorCode::kRuntime);
    CHECK(topology.error().message ==
          "the system names no NUMA node with a CPU and memory that this process may use; look at "
          "/sys/devices/system/node and the process's cpuset");
  }
  CHECK(made({.nodes = {node(0, cpus(0, 2), 0)}, .homeless = {}, .distances = {}}).cpus() == 2);
}

TEST_CASE("a part of the machine: nodes, CPUs, both") {
  const auto whole = Topology::synthetic("numa:4 core:4 pu:2");
  REQUIRE(whole.has_value());
  const auto nodes = whole->restricted({1, 3}, {});
  REQUIRE(nodes.has_value());
  REQUIRE(nodes->nodes().size() == 2);
  CHECK(nodes->nodes()[0].id == 1);
  CHECK(nodes->nodes()[1].id == 3);
  CHECK(nodes->distance(0, 1) == 20);
  const auto some = whole->restricted({}, {1, 2, 3, 8});
  REQUIRE(some.has_value());
  REQUIRE(some->nodes().size() == 2);
  CHECK(some->nodes()[0].cpus == std::vector<int>{1, 2, 3});  // 2 and 3 share a core
  CHECK(some->nodes()[0].cores == 2);
  CHECK(some->nodes()[1].cpus == std::vector<int>{8});
  const auto both = whole->restricted({2}, {16, 17, 18});
  REQUIRE(both.has_value());
  CHECK(all_cpus(*both) == std::vector<int>{16, 17, 18});
  CHECK(both->cores() == 2);
  CHECK(whole->restricted({}, {})->cpus() == 32);
}

TEST_CASE("nodes and CPUs that do not exist are named, and so is what there is") {
  const auto whole = Topology::synthetic("numa:4 core:2 pu:1");
  REQUIRE(whole.has_value());
  CHECK(refusal(*whole, {0, 7}, {}) == "node 7 does not exist or may not be used; this machine has nodes 0-3");
  CHECK(refusal(*whole, {}, {2, 99}) == "CPU 99 does not exist or may not be used; this process may use CPUs 0-7");
  CHECK(refusal(*whole, {0}, {0, 1, 5}) == "CPU 5 is on node 2, but only node 0 is to be used");
  CHECK(refusal(*whole, {0, 1}, {0, 1}) == "node 1 is to be used, but none of its CPUs is among CPUs 0-1");
  const Topology special = made({.nodes = {node(0, cpus(0, 1), 1_GiB), node(1, cpus(1, 1), 0), node(2, {}, 1_GiB)},
                                 .homeless = {},
                                 .distances = {}});
  CHECK(refusal(special, {2}, {}) == "node 2 has memory but no CPU that may be used; threads can run on node 0");
  CHECK(refusal(special, {1}, {}) ==
        "node 1 has no memory that may be used, its CPUs belong to node 0; this machine has node 0");
}

TEST_CASE("memory is bound where there are several, of a part of the machine too") {
  const Topology one = made({.nodes = {node(0, cpus(0, 1), 1_GiB)}, .homeless = {}, .distances = {}});
  CHECK_FALSE(one.pins_threads());  // not this machine
  CHECK_FALSE(one.binds_memory());
  const auto machine = Topology::detect();
  REQUIRE(machine.has_value());
  CHECK(machine->pins_threads());
  CHECK(machine->binds_memory() == (machine->nodes().size() + machine->memory_only().size() > 1));
  CHECK_FALSE(machine->unpinned().pins_threads());
  CHECK_FALSE(machine->unpinned().binds_memory());
  CHECK(machine->unpinned().cpus() == machine->cpus());
}

TEST_CASE("what /sys says of nodes") {
  FakeRoot root;
  root.write("sys/devices/system/node/online", "0,2\n");
  root.write_node(0, "0-1", 1024, "10 17");
  root.write_node(2, "", 4096, "17 10");
  root.write("sys/devices/system/node/node2/hugepages/hugepages-1048576kB/nr_hugepages", "3\n");
  root.write("sys/devices/system/node/node2/hugepages/hugepages-1048576kB/free_hugepages", "2\n");
  const auto nodes = numa::read_node_files(root.path());
  REQUIRE(nodes.size() == 2);
  CHECK(nodes[0].cpus == std::vector<int>{0, 1});
  CHECK(nodes[0].memory_bytes == 1_GiB);
  CHECK(nodes[0].free_bytes == 513_MiB);
  CHECK(nodes[0].distances == std::vector<int>{10, 17});
  CHECK(nodes[1].id == 2);
  CHECK(nodes[1].cpus.empty());
  CHECK(nodes[1].reserved.total_1g == 3);
  CHECK(nodes[1].reserved.free_1g == 2);
  CHECK_FALSE(numa::read_allowed_nodes(root.path()).has_value());
  root.write("proc/self/status", "Name: x\nMems_allowed:\t1\nMems_allowed_list:\t0,2-3\n");
  CHECK(numa::read_allowed_nodes(root.path()) == std::vector<int>{0, 2, 3});
  CHECK(numa::read_node_files("/nonexistent").empty());
}

TEST_CASE("detect() completes what hwloc leaves out: memory without CPUs, and memory that is forbidden") {
  const auto machine = Topology::detect();
  REQUIRE(machine.has_value());
  if (machine->nodes().size() != 1 || machine->nodes()[0].id != 0) {
    MESSAGE("SKIPPED: this machine has several memory nodes");
    return;
  }
  FakeRoot root;
  root.write("sys/devices/system/node/online", "0-2\n");
  root.write_node(0, list_text(all_cpus(*machine)), 1024, "10 20 17");
  root.write_node(1, "", 2048, "20 10 30");
  root.write_node(2, "", 4096, "17 30 10");
  root.write("proc/self/status", "Mems_allowed_list:\t0,2\n");
  const auto topology = Topology::detect(root.path());
  REQUIRE(topology.has_value());
  CHECK(topology->cpus() == machine->cpus());
  CHECK(topology->nodes().size() == 1);
  CHECK(topology->nodes()[0].free_bytes == 513_MiB);
  CHECK(std::ranges::equal(topology->unreachable_memory(), std::vector<int>{1}));
  REQUIRE(topology->memory_only().size() == 1);
  CHECK(topology->memory_only()[0].id == 2);
  CHECK(topology->distance_of_ids(0, 2) == 17);
  CHECK(topology->binds_memory());
  CHECK(topology->doubt().empty());

  // The only node is forbidden: its CPUs go to the memory that is left.
  root.write("proc/self/status", "Mems_allowed_list:\t1-2\n");
  const auto moved = Topology::detect(root.path());
  REQUIRE(moved.has_value());
  REQUIRE(moved->nodes().size() == 1);
  CHECK(moved->nodes()[0].id == 2);
  CHECK(moved->memoryless()[0].served_by == 2);
}

TEST_CASE("a system whose /sys cannot be read leaves a doubt") {
  const auto topology = Topology::detect("/nonexistent");
  REQUIRE(topology.has_value());
  CHECK(
      topology->doubt() ==
      "/sys/devices/system/cpu cannot be read (No such file or directory), so it is not known which CPUs share a core "
      "or a memory");
}
