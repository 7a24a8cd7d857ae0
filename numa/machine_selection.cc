#include "numa/machine_selection.h"

#include "base/check.h"
#include "base/format.h"
#include "numa/cpu_list.h"

namespace cpuinfer::numa {

Result<Selection> select(const Topology& whole, const MachineOptions& options, int threads) {
  ENSURE(options.nodes == 0 || options.node_ids.empty(), "nodes are given by their number or as a list, not both");
  if (options.pin && !whole.doubt().empty())
    return fail(ErrorCode::kRuntime,
                format("{}; let this process read /sys, or run with --no-pin, at varying speed", whole.doubt()));
  std::vector<int> node_ids = options.node_ids;
  if (options.nodes > 0) {
    std::vector<int> there;
    for (const Node& node : whole.nodes()) there.push_back(node.id);
    if (static_cast<size_t>(options.nodes) > there.size())
      return fail(
          ErrorCode::kUsage,
          format("--nodes {}: this process may use {} node{} of this machine ({}); --simulate-nodes {} pretends "
                 "that there are more, for tests",
                 options.nodes, there.size(), there.size() == 1 ? "" : "s", list_text(there), options.nodes));
    node_ids.assign(there.begin(), there.begin() + options.nodes);
  }
  TRY_ASSIGN(Topology part, whole.restricted(node_ids, options.cpu_ids));
  TeamOptions team{.threads = threads, .nodes = 0, .smt = options.smt};
  // Nodes that were asked for are to be used: fewer threads than that is an error.
  if (options.simulated_nodes > 0)
    team.nodes = options.simulated_nodes;
  else if (!node_ids.empty())
    team.nodes = static_cast<int>(part.nodes().size());
  return Selection{options.pin ? std::move(part) : part.unpinned(), team};
}

Result<Selection> select_from_machine(const MachineOptions& options, int threads) {
  TRY_ASSIGN(const Topology whole, Topology::detect());
  return select(whole, options, threads);
}

}  // namespace cpuinfer::numa
