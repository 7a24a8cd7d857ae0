// Which worker of a team goes to which node and CPUs, before any thread exists.
#pragma once

#include <vector>

#include "base/result.h"
#include "numa/topology.h"

namespace cpuinfer::numa {

struct TeamOptions {
  int threads = 0;  ///< 0: one per physical core of the nodes in use (see smt), at least one per node
  int nodes = 0;    ///< 0: all, as far as there are threads; a machine's first `nodes` if it has more; if it has fewer,
                    ///< threads are dealt to that many simulated nodes, for tests
  bool smt = false;  ///< threads = 0 means one per CPU, SMT siblings included
};

/// One worker of a team.
struct WorkerPlace {
  int node = 0;                             ///< index of its node
  int rank_in_node = 0, count_in_node = 1;  ///< among the workers of its node
  std::vector<int> cpus;                    ///< where it is to run: one CPU, or all of its node if it shares them
};

struct TeamLayout {
  int nodes = 1;
  bool oversubscribed = false;       ///< some workers share CPUs
  std::vector<WorkerPlace> workers;  ///< by rank: node 0 first

  /// [workers] the node of each.
  std::vector<int> worker_nodes() const;
};

inline constexpr int kMaxWorkers = 4096;

/// Deals workers to nodes: one physical core after the other, node by node in turn, then SMT siblings, then without
/// limit; to simulated nodes evenly. On a node each takes the next CPU; where there are more workers than CPUs they
/// share them all, since two that are pinned to one CPU would wait for each other while another CPU idles. Pure.
/// Errors: kUsage (negative or absurd numbers, fewer threads than nodes).
Result<TeamLayout> plan_team(const Topology& topology, const TeamOptions& options);

}  // namespace cpuinfer::numa
