#include "numa/machine_selection.h"

#include <doctest/doctest.h>

#include "tests/numa/topologies.h"

using namespace cpuinfer;
using numa::MachineOptions;
using numa::select;
using numa::synthetic;
using numa::Topology;

namespace {

std::vector<int> workers_by_node(const Topology& whole, const MachineOptions& options, int threads = 0) {
  const auto selection = select(whole, options, threads);
  REQUIRE_MESSAGE(selection.has_value(), (selection ? "" : selection.error().message));
  const auto layout = numa::plan_team(selection->topology, selection->team);
  REQUIRE(layout.has_value());
  std::vector<int> counts(static_cast<size_t>(layout->nodes), 0);
  for (const numa::WorkerPlace& worker : layout->workers) ++counts[static_cast<size_t>(worker.node)];
  return counts;
}

std::string usage(const Topology& whole, const MachineOptions& options) {
  const auto selection = select(whole, options, 0);
  REQUIRE_FALSE(selection.has_value());
  CHECK(selection.error().code == ErrorCode::kUsage);
  return selection.error().message;
}

}  // namespace

TEST_CASE("nodes by number and as a list, CPUs, siblings, pretended nodes") {
  const Topology whole = synthetic("numa:4 core:4 pu:2");
  CHECK(workers_by_node(whole, {}) == std::vector<int>{4, 4, 4, 4});
  CHECK(workers_by_node(whole, {.nodes = 2}) == std::vector<int>{4, 4});
  CHECK(workers_by_node(whole, {.node_ids = {1, 3}}) == std::vector<int>{4, 4});
  CHECK(select(whole, {.node_ids = {1, 3}}, 0)->topology.home(1).id == 3);
  CHECK(workers_by_node(whole, {.smt = true}) == std::vector<int>{8, 8, 8, 8});
  CHECK(workers_by_node(whole, {.cpu_ids = {0, 2, 4, 8}}) == std::vector<int>{3, 1});
  CHECK(workers_by_node(whole, {.cpu_ids = {0, 1}}) == std::vector<int>{1});
  CHECK(workers_by_node(whole, {.cpu_ids = {0, 1}, .smt = true}) == std::vector<int>{2});
  CHECK(workers_by_node(whole, {.simulated_nodes = 6}, 12) == std::vector<int>(6, 2));
  CHECK(workers_by_node(whole, {.node_ids = {2}, .simulated_nodes = 2}) == std::vector<int>{2, 2});
  CHECK(workers_by_node(whole, {}, 2) == std::vector<int>{1, 1});
}

TEST_CASE("more nodes than there are is an error that names them and the way to pretend") {
  const Topology whole = synthetic("numa:4 core:4 pu:2");
  CHECK(
      usage(whole, {.nodes = 5}) ==
      "--nodes 5: this process may use 4 nodes of this machine (0-3); --simulate-nodes 5 pretends that there are more, "
      "for tests");
  CHECK(usage(synthetic("numa:1 core:1 pu:1"), {.nodes = 2}).find("1 node of this machine (0)") != std::string::npos);
  CHECK(usage(whole, {.node_ids = {0, 9}}) == "node 9 does not exist or may not be used; this machine has nodes 0-3");
  CHECK(usage(whole, {.cpu_ids = {77}}) == "CPU 77 does not exist or may not be used; this process may use CPUs 0-31");
  const auto few = select(whole, {.nodes = 3}, 2);
  REQUIRE(few.has_value());
  CHECK_FALSE(numa::plan_team(few->topology, few->team).has_value());
}

TEST_CASE("without pinning nothing is pinned or bound; a machine that hides its CPUs needs that") {
  const auto unpinned = numa::select_from_machine({.pin = false}, 0);
  REQUIRE(unpinned.has_value());
  CHECK_FALSE(unpinned->topology.pins_threads());
  const auto hidden = Topology::detect("/nonexistent");
  REQUIRE(hidden.has_value());
  CHECK(select(*hidden, {.pin = false}, 0).has_value());
  const auto refused = select(*hidden, {}, 0);
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code == ErrorCode::kRuntime);
  CHECK(
      refused.error().message ==
      "/sys/devices/system/cpu cannot be read (No such file or directory), so it is not known which CPUs share a core "
      "or a memory; let this process read /sys, or run with --no-pin, at varying speed");
}
