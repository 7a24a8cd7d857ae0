// Which part of the machine to use, from what users ask for.
#pragma once

#include <vector>

#include "base/result.h"
#include "numa/team_layout.h"
#include "numa/topology.h"

namespace cpuinfer::numa {

/// What users say of nodes and CPUs. Nothing said: all nodes, one thread per physical core, pinned.
struct MachineOptions {
  int nodes = 0;                   ///< --nodes N: the machine's first N; 0: all
  std::vector<int> node_ids = {};  ///< --nodes LIST: these instead; ascending
  std::vector<int> cpu_ids = {};   ///< --cores LIST: of their CPUs only these; ascending; empty: all
  int simulated_nodes = 0;  ///< --simulate-nodes N: deal threads and memory to N pretended nodes; 0: none pretended
  bool smt = false;         ///< --smt: one thread per CPU instead of one per physical core
  bool pin = true;          ///< false, --no-pin: threads run and memory lies where the system wants

  friend bool operator==(const MachineOptions&, const MachineOptions&) = default;
};

/// The part to use: its topology, and the team for it.
struct Selection {
  Topology topology;
  TeamOptions team;
};

/// threads: 0 = one per physical core, or CPU. Errors: kUsage (nodes or CPUs that do not exist; the message says which
/// do), kRuntime (the system hides its CPUs, so that there is nothing to pin by).
Result<Selection> select(const Topology& whole, const MachineOptions& options, int threads);

/// select() from this machine.
Result<Selection> select_from_machine(const MachineOptions& options, int threads);

}  // namespace cpuinfer::numa
