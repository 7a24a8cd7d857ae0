#include "numa/topology.h"

#include <doctest/doctest.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

using namespace cpuinfer;
using numa::Node;
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
