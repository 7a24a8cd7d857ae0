// What the machine is: NUMA nodes, the CPUs of each that this process may use, memory, huge pages. Hides hwloc.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace cpuinfer::numa {

/// One NUMA node with at least one CPU that this process may use.
struct Node {
  int id = 0;             ///< the operating system's number
  std::vector<int> cpus;  ///< usable CPUs by the system's number: one of each physical core first, SMT siblings after
  int cores = 0;          ///< physical cores among them: cpus[0 .. cores-1] are on different cores
  int64_t memory_bytes = 0;  ///< installed
  int64_t free_bytes = 0;    ///< free or page cache that the kernel can drop, when detect() looked
};

/// Huge pages of the whole machine.
struct HugePages {
  int64_t total_2m = 0, free_2m = 0;  ///< reserved pages of 2 MiB
  int64_t total_1g = 0, free_1g = 0;  ///< reserved pages of 1 GiB
  std::string transparent;            ///< "always", "madvise", "never", or "" if the kernel has none
};

/// An immutable description of the machine: nodes in ascending id, at least one, each with at least one CPU.
/// A node is named by its index in nodes() everywhere in cpuinfer; its id appears only in messages and system calls.
class Topology {
 public:
  /// The machine, as far as this process may use it: CPUs outside the affinity mask or the cpuset are left out, and so
  /// are nodes that have none left. Errors: kRuntime if the system does not say what it has.
  static Result<Topology> detect();

  /// A machine that is not there, in hwloc's notation, e.g. "numa:2 core:4 pu:1" or "numa:2(memory=64GB) core:8 pu:2":
  /// for plans and tests. Threads are not pinned and memory is not bound with it. Errors: kUsage.
  static Result<Topology> synthetic(std::string_view description);

  /// The same machine whose nodes have so many bytes installed and free: for plans. REQUIRES: a number for each node.
  Topology with_memory(std::span<const int64_t> node_bytes) const;

  std::span<const Node> nodes() const { return nodes_; }
  /// Physical cores of all nodes.
  int cores() const;
  /// Usable CPUs of all nodes, SMT siblings included.
  int cpus() const;
  /// "Intel(R) Xeon(R) Platinum 8592+", or "unknown".
  const std::string& cpu_model() const { return cpu_model_; }
  const HugePages& huge_pages() const { return huge_pages_; }
  /// False for synthetic().
  bool is_this_machine() const { return is_this_machine_; }

  /// Where node `node` of a team really is. Teams may have more nodes than the machine (simulated nodes, for tests):
  /// they go around the machine's. REQUIRES: node >= 0.
  const Node& home(int node) const { return nodes_[static_cast<size_t>(node) % nodes_.size()]; }

 private:
  Topology() = default;

  std::vector<Node> nodes_;
  std::string cpu_model_ = "unknown";
  HugePages huge_pages_;
  bool is_this_machine_ = false;

  friend class TopologyReader;
};

}  // namespace cpuinfer::numa
