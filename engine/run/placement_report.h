// Where the memory and the threads of a loaded engine really are, beside where the plan puts them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "numa/placement.h"
#include "numa/team.h"
#include "numa/topology.h"

namespace cpuinfer::run {

/// Memory of one purpose that the plan puts on one node.
struct PlacementLine {
  std::string purpose;    ///< as in the plan: "experts", "KV cache", ...
  int node_id = 0;        ///< the system's number
  numa::PageCount pages;  ///< of those looked at
};

/// Below this share of touched pages on their nodes, something is wrong.
inline constexpr double kLeastLocalShare = 0.999;

struct PlacementReport {
  std::vector<PlacementLine> lines;
  std::vector<numa::WorkerPlacement> workers;  ///< by rank; nodes are indexes of the topology
  std::vector<int> worker_node_ids;            ///< the same by the system's numbers
  std::string cause;                           ///< why pages are elsewhere, most likely; empty: they are not

  /// Pages looked at that are on the node of their line, of all that are anywhere. 1 if none is.
  double local_share() const;
  /// Workers last seen on a CPU that is not theirs.
  int stray_workers() const;
  bool is_good() const { return local_share() >= kLeastLocalShare && stray_workers() == 0; }

  /// For people: a line per purpose and node, and the threads. No trailing newline.
  std::string table() const;
  /// "99.98 % of 12,345 pages are on their nodes" and, if it is not good, why.
  std::string sentence() const;
  /// {"placement": [...], "local_percent", "workers": [...], "cause"}
  Json json() const;
};

/// A piece of memory of one purpose, wanted on one node (an index of the topology).
struct PlacedMemory {
  std::string purpose;
  int node = 0;
  const void* data = nullptr;
  int64_t bytes = 0;
};

/// Asks the system about the pages of `memory`: all of them, or of more than a million a million, evenly spread. Pages
/// of one purpose and node are added up. Errors: of numa::count_pages.
Result<PlacementReport> measure_placement(const std::vector<PlacedMemory>& memory, const numa::Team& team,
                                          const numa::Topology& topology);

}  // namespace cpuinfer::run
