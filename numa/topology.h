// What the machine is: NUMA nodes, the CPUs of each that this process may use, memory, distances, huge pages. Hides
// hwloc.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "numa/system_nodes.h"

namespace cpuinfer::numa {

/// One NUMA node: memory and, in Topology::nodes(), at least one CPU that this process may use.
struct Node {
  int id = 0;             ///< the operating system's number
  std::vector<int> cpus;  ///< usable CPUs by the system's number: one of each physical core first, SMT siblings after
  std::vector<int> core_of;  ///< of each of `cpus`, a number that SMT siblings share
  int cores = 0;             ///< physical cores among them: cpus[0 .. cores-1] are on different cores
  int64_t memory_bytes = 0;  ///< installed
  int64_t free_bytes = 0;    ///< free or page cache that the kernel can drop, when detect() looked
  ReservedPages reserved;    ///< huge pages set aside on this node, when detect() looked
};

/// CPUs whose own node has no memory that this process may use; another node serves them.
struct MemorylessNode {
  int id = 0;             ///< the operating system's number; -1: the system puts these CPUs into no node
  std::vector<int> cpus;  ///< usable ones, ascending
  int served_by = 0;      ///< id of the nearest node with memory, whose `cpus` they are in
};

/// Huge pages of the whole machine.
struct HugePages {
  ReservedPages reserved = {};
  std::string transparent = {};  ///< "always", "madvise", "never", or "" if the kernel has none
};

/// An immutable description of the machine: nodes in ascending id, at least one, each with memory and at least one CPU.
/// A node is named by its index in nodes() everywhere in cpuinfer; its id appears only in messages and system calls.
class Topology {
 public:
  /// The machine, as far as this process may use it: CPUs outside the affinity mask or the cpuset are left out, and so
  /// are nodes that have none left. CPUs of a node without memory that may be used count as CPUs of the nearest node
  /// that has some. /proc and /sys are looked up below `root`, except by hwloc.
  /// Errors: kRuntime if the system does not say what it has.
  static Result<Topology> detect(const std::filesystem::path& root = "/");

  /// A machine that is not there, in hwloc's notation, e.g. "numa:2 core:4 pu:1" or "numa:2(memory=64GB) core:8 pu:2":
  /// for plans and tests. Threads are not pinned and memory is not bound with it. Errors: kUsage.
  static Result<Topology> synthetic(std::string_view description);

  /// A machine that is not there either, from its parts. Nodes need memory unless none has any, which counts as not
  /// known. Errors: kRuntime if there is no node with memory or no CPU.
  static Result<Topology> from(SystemNodes system);

  /// A part of this one: the nodes with these ids, of their CPUs those with these numbers (ascending; empty: all).
  /// Nodes that keep no CPU are left out, unless node_ids names them, which is an error.
  /// Errors: kUsage (names what does not exist, and what does).
  Result<Topology> restricted(const std::vector<int>& node_ids, const std::vector<int>& cpu_ids) const;

  /// The same with which threads are not pinned and memory is not bound to nodes: the system decides.
  Topology unpinned() const;

  /// The same machine whose nodes have so many bytes installed and free: for plans. REQUIRES: a number for each node.
  Topology with_memory(std::span<const int64_t> node_bytes) const;

  std::span<const Node> nodes() const { return nodes_; }
  /// Nodes with memory that may be used but no CPU (CXL memory, HBM as a node of its own). Nothing is placed there.
  std::span<const Node> memory_only() const { return memory_only_; }
  /// Nodes whose CPUs are served by another node.
  std::span<const MemorylessNode> memoryless() const { return memoryless_; }
  /// Ids of nodes whose memory the cpuset of this process forbids.
  std::span<const int> unreachable_memory() const { return unreachable_memory_; }

  /// How far node `to` is from node `from`, indexes of nodes(), as the firmware says: 10 is local, 20 twice as far. 20
  /// if it does not say.
  int distance(int from, int to) const { return distance_of_ids(nodes_[from].id, nodes_[to].id); }
  /// The same for any nodes of the machine by their ids, those without CPUs included.
  int distance_of_ids(int from, int to) const;

  /// Physical cores of all nodes.
  int cores() const;
  /// Usable CPUs of all nodes, SMT siblings included.
  int cpus() const;
  /// "Intel(R) Xeon(R) Platinum 8592+", or "unknown".
  const std::string& cpu_model() const { return cpu_model_; }
  const HugePages& huge_pages() const { return huge_pages_; }
  /// False for synthetic() and from().
  bool is_this_machine() const { return is_this_machine_; }
  /// Why the layout is a guess, as the beginning of a sentence; "" if it is not.
  const std::string& doubt() const { return doubt_; }

  /// Threads are to be pinned: this machine, and not unpinned().
  bool pins_threads() const { return is_this_machine_ && !unpinned_; }
  /// Memory is to be bound to nodes: as pins_threads(), and the machine has memory on more than one node.
  bool binds_memory() const { return pins_threads() && machine_memories_ > 1; }

  /// Where node `node` of a team really is. Teams may have more nodes than the machine (simulated nodes, for tests):
  /// they go around the machine's. REQUIRES: node >= 0.
  const Node& home(int node) const { return nodes_[static_cast<size_t>(node) % nodes_.size()]; }

 private:
  Topology() = default;
  /// Node index by id, -1 if there is none.
  int index_of(int id) const;
  Result<void> check_nodes(const std::vector<int>& node_ids) const;
  Result<void> check_cpus(const std::vector<int>& node_ids, const std::vector<int>& cpu_ids) const;

  std::vector<Node> nodes_;
  std::vector<Node> memory_only_;
  std::vector<MemorylessNode> memoryless_;
  std::vector<int> unreachable_memory_;
  std::vector<std::pair<int, std::vector<int>>> distances_;  // rows by id; columns in the same order
  std::string cpu_model_ = "unknown";
  HugePages huge_pages_;
  std::string doubt_;
  int machine_memories_ = 0;  // nodes with memory that may be used, before restricted()
  bool is_this_machine_ = false;
  bool unpinned_ = false;

  friend class TopologyReader;
};

}  // namespace cpuinfer::numa
