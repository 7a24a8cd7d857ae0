#include "numa/team_layout.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "tests/numa/topologies.h"

using namespace cpuinfer;
using numa::plan_team;
using numa::synthetic;
using numa::TeamLayout;
using numa::TeamOptions;
using numa::Topology;

namespace {

TeamLayout planned(const Topology& topology, const TeamOptions& options) {
  const auto layout = plan_team(topology, options);
  REQUIRE(layout.has_value());
  int last_node = 0;
  for (const numa::WorkerPlace& worker : layout->workers) {
    CHECK(worker.node >= last_node);
    CHECK(worker.node < layout->nodes);
    CHECK(worker.rank_in_node < worker.count_in_node);
    CHECK_FALSE(worker.cpus.empty());
    last_node = worker.node;
  }
  return *layout;
}

/// Workers of each node, after checking that their ranks in it are in order.
std::vector<int> by_node(const TeamLayout& layout) {
  std::vector<int> counts(static_cast<size_t>(layout.nodes), 0);
  for (const numa::WorkerPlace& worker : layout.workers)
    CHECK(worker.rank_in_node == counts[static_cast<size_t>(worker.node)]++);
  for (const numa::WorkerPlace& worker : layout.workers)
    CHECK(worker.count_in_node == counts[static_cast<size_t>(worker.node)]);
  return counts;
}

/// The only CPU of each worker.
std::vector<int> single_cpus(const TeamLayout& layout) {
  std::vector<int> cpus;
  for (const numa::WorkerPlace& worker : layout.workers) {
    REQUIRE(worker.cpus.size() == 1);
    cpus.push_back(worker.cpus[0]);
  }
  return cpus;
}

}  // namespace

TEST_CASE("2 x 56 cores with siblings: one worker per core, or with smt one per CPU") {
  const Topology server = synthetic("pack:2 numa:1 core:56 pu:2");
  const TeamLayout cores = planned(server, {});
  CHECK(by_node(cores) == std::vector<int>{56, 56});
  CHECK_FALSE(cores.oversubscribed);
  const std::vector<int> cpus = single_cpus(cores);
  for (int rank = 0; rank < 112; ++rank) CHECK(cpus[static_cast<size_t>(rank)] == 2 * rank);

  const TeamLayout all = planned(server, {.smt = true});
  CHECK(by_node(all) == std::vector<int>{112, 112});
  std::vector<int> each = single_cpus(all);
  CHECK(each[0] == 0);
  CHECK(each[56] == 1);  // the first core's sibling, after all cores of the node
  std::ranges::sort(each);
  CHECK(std::ranges::adjacent_find(each) == each.end());
  CHECK_FALSE(all.oversubscribed);
  CHECK(planned(server, {.threads = 5, .smt = true}).workers.size() == 5);
}

TEST_CASE("the first nodes, and fewer threads than cores: node by node in turn") {
  const Topology server = synthetic("pack:2 numa:1 core:56 pu:2");
  CHECK(by_node(planned(server, {.nodes = 1})) == std::vector<int>{56});
  CHECK(by_node(planned(server, {.threads = 33})) == std::vector<int>{17, 16});
  CHECK(by_node(planned(server, {.threads = 1})) == std::vector<int>{1});
  CHECK(by_node(planned(server, {.threads = 120})) == std::vector<int>{60, 60});
  CHECK(single_cpus(planned(server, {.threads = 3})) == std::vector<int>{0, 2, 112});
}

TEST_CASE("SNC: four nodes of a package each") {
  const Topology snc = synthetic("pack:2 numa:4 core:14 pu:2");
  CHECK(by_node(planned(snc, {})) == std::vector<int>(8, 14));
  CHECK(by_node(planned(snc, {.threads = 20})) == std::vector<int>{3, 3, 3, 3, 2, 2, 2, 2});
  CHECK(by_node(planned(snc, {.threads = 3})) == std::vector<int>{1, 1, 1});
}

TEST_CASE("uneven cores: the larger node takes what the smaller cannot") {
  const auto uneven = synthetic("numa:2 core:8 pu:1").restricted({}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
  REQUIRE(uneven.has_value());
  CHECK(by_node(planned(*uneven, {})) == std::vector<int>{8, 2});
  CHECK(by_node(planned(*uneven, {.threads = 6})) == std::vector<int>{4, 2});
}

TEST_CASE("CPUs without memory work for the node that serves them") {
  numa::SystemNodes system;
  system.nodes.resize(3);
  for (int id = 0; id < 3; ++id) {
    system.nodes[static_cast<size_t>(id)].id = id;
    system.nodes[static_cast<size_t>(id)].memory_bytes = id == 1 ? 0 : 1 << 30;
    for (int cpu = 4 * id; cpu < 4 * id + 4; ++cpu) system.nodes[static_cast<size_t>(id)].cpus.push_back({cpu, cpu});
  }
  system.distances = {{10, 12, 20}, {12, 10, 20}, {20, 20, 10}};
  const auto topology = Topology::from(system);
  REQUIRE(topology.has_value());
  const TeamLayout layout = planned(*topology, {});
  CHECK(by_node(layout) == std::vector<int>{8, 4});
  CHECK(single_cpus(layout) == std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
}

TEST_CASE("more threads than CPUs share them all") {
  const Topology small = synthetic("numa:2 core:2 pu:2");
  const TeamLayout layout = planned(small, {.threads = 11});
  CHECK(layout.oversubscribed);
  CHECK(by_node(layout) == std::vector<int>{6, 5});
  for (const numa::WorkerPlace& worker : layout.workers)
    CHECK(worker.cpus == (worker.node == 0 ? std::vector<int>{0, 2, 1, 3} : std::vector<int>{4, 6, 5, 7}));
}

TEST_CASE("more nodes than the machine has are simulated: even shares, CPUs around the machine's nodes") {
  const Topology one = synthetic("numa:1 core:4 pu:1");
  CHECK(by_node(planned(one, {.nodes = 3})) == std::vector<int>{2, 1, 1});
  CHECK(single_cpus(planned(one, {.nodes = 3})) == std::vector<int>{0, 1, 2, 3});
  CHECK(by_node(planned(one, {.threads = 7, .nodes = 5})) == std::vector<int>{2, 2, 1, 1, 1});
  CHECK(planned(one, {.threads = 7, .nodes = 5}).oversubscribed);
  const Topology two = synthetic("numa:2 core:2 pu:1");
  CHECK(single_cpus(planned(two, {.nodes = 4})) == std::vector<int>{0, 2, 1, 3});
}

TEST_CASE("numbers that make no sense are usage errors") {
  const Topology topology = synthetic("numa:2 core:4 pu:1");
  const auto message = [&](int threads, int nodes) {
    const auto layout = plan_team(topology, {.threads = threads, .nodes = nodes});
    REQUIRE_FALSE(layout.has_value());
    CHECK(layout.error().code == ErrorCode::kUsage);
    return layout.error().message;
  };
  CHECK(message(-1, 0) == "-1 threads: expected 1 to 4096, or 0 for one per physical core (8 here)");
  CHECK(message(5000, 0) == "5000 threads: expected 1 to 4096, or 0 for one per physical core (8 here)");
  CHECK(message(0, -2) == "-2 nodes: expected 1 to 4096, or 0 for all of the machine (2 here)");
  CHECK(message(2, 3) ==
        "2 threads cannot serve 3 nodes: every node needs a thread; use at least 3 threads or at most 2 nodes");
}
