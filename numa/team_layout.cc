#include "numa/team_layout.h"

#include <algorithm>

#include "base/format.h"
#include "numa/shard.h"

namespace cpuinfer::numa {
namespace {

/// How many of `threads` each of `nodes` nodes gets.
std::vector<int> deal(const Topology& topology, int threads, int nodes) {
  std::vector<int> counts(static_cast<size_t>(nodes), 0);
  if (static_cast<size_t>(nodes) > topology.nodes().size()) {
    for (int n = 0; n < nodes; ++n) counts[static_cast<size_t>(n)] = static_cast<int>(split(threads, nodes, n).count());
    return counts;
  }
  int left = threads;
  const auto fill = [&](auto limit_of) {
    for (bool dealt = true; dealt && left > 0;) {
      dealt = false;
      for (size_t n = 0; n < counts.size() && left > 0; ++n) {
        if (counts[n] >= limit_of(topology.nodes()[n])) continue;
        ++counts[n];
        --left;
        dealt = true;
      }
    }
  };
  fill([](const Node& node) { return node.cores; });
  fill([](const Node& node) { return static_cast<int>(node.cpus.size()); });
  fill([](const Node&) { return kMaxWorkers; });
  return counts;
}

}  // namespace

std::vector<int> TeamLayout::worker_nodes() const {
  std::vector<int> worker_nodes;
  for (const WorkerPlace& worker : workers) worker_nodes.push_back(worker.node);
  return worker_nodes;
}

Result<TeamLayout> plan_team(const Topology& topology, const TeamOptions& options) {
  const int machine_nodes = static_cast<int>(topology.nodes().size());
  int threads = options.threads;
  int nodes = options.nodes;
  if (threads < 0 || threads > kMaxWorkers)
    return fail(ErrorCode::kUsage, format("{} threads: expected 1 to {}, or 0 for one per physical core ({} here)",
                                          threads, kMaxWorkers, topology.cores()));
  if (nodes < 0 || nodes > kMaxWorkers)
    return fail(ErrorCode::kUsage, format("{} nodes: expected 1 to {}, or 0 for all of the machine ({} here)", nodes,
                                          kMaxWorkers, machine_nodes));
  if (nodes == 0) nodes = threads == 0 ? machine_nodes : std::min(machine_nodes, threads);
  if (threads == 0) {
    for (const Node& node : topology.nodes().first(static_cast<size_t>(std::min(nodes, machine_nodes))))
      threads += options.smt ? static_cast<int>(node.cpus.size()) : node.cores;
    threads = std::max(threads, nodes);
  }
  if (threads < nodes)
    return fail(ErrorCode::kUsage, format("{} threads cannot serve {} nodes: every node needs a thread; use at least "
                                          "{} threads or at most {} nodes",
                                          threads, nodes, nodes, threads));

  const std::vector<int> counts = deal(topology, threads, nodes);
  std::vector<int> wanted(static_cast<size_t>(machine_nodes), 0);
  for (int n = 0; n < nodes; ++n) wanted[static_cast<size_t>(n % machine_nodes)] += counts[static_cast<size_t>(n)];
  std::vector<size_t> taken(static_cast<size_t>(machine_nodes), 0);
  TeamLayout layout{.nodes = nodes, .oversubscribed = false, .workers = {}};
  for (int n = 0; n < nodes; ++n) {
    const Node& home = topology.home(n);
    const auto home_index = static_cast<size_t>(n % machine_nodes);
    const bool shared = wanted[home_index] > static_cast<int>(home.cpus.size());
    layout.oversubscribed |= shared;
    for (int r = 0; r < counts[static_cast<size_t>(n)]; ++r) {
      WorkerPlace worker{.node = n, .rank_in_node = r, .count_in_node = counts[static_cast<size_t>(n)], .cpus = {}};
      if (shared)
        worker.cpus = home.cpus;
      else
        worker.cpus = {home.cpus[taken[home_index]++]};
      layout.workers.push_back(std::move(worker));
    }
  }
  return layout;
}

}  // namespace cpuinfer::numa
