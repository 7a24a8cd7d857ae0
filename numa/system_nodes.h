// Memory nodes as the system describes them, before Topology decides which of them compute. Hides /sys and /proc.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace cpuinfer::numa {

/// Reserved huge pages (hugetlbfs pools) of a node or of the machine.
struct ReservedPages {
  int64_t total_2m = 0, free_2m = 0;
  int64_t total_1g = 0, free_1g = 0;
};

/// A CPU that this process may use.
struct SystemCpu {
  int id = 0;    ///< the system's number
  int core = 0;  ///< any number that its SMT siblings share and no other CPU has
};

struct SystemNode {
  int id = 0;
  std::vector<SystemCpu> cpus;
  int64_t memory_bytes = 0;
  int64_t free_bytes = -1;  ///< free, or page cache that the kernel can drop; -1: the system does not say
  bool allowed = true;      ///< false: the cpuset of this process forbids its memory
  ReservedPages reserved;
};

/// All that is needed of a machine to make a Topology.
struct SystemNodes {
  std::vector<SystemNode> nodes;            ///< each id once
  std::vector<SystemCpu> homeless;          ///< CPUs that the system puts into no node
  std::vector<std::vector<int>> distances;  ///< [from][to] by place in `nodes`; 0 or missing: not known
};

/// What the files below `root` say of one node that is online.
struct NodeFiles {
  int id = 0;
  std::vector<int> cpus;  ///< all of its CPUs, of this process or not
  int64_t memory_bytes = 0;
  int64_t free_bytes = -1;
  ReservedPages reserved;
  std::vector<int> distances;  ///< to all nodes that are online, in ascending order; empty: not said
};

/// The nodes in /sys/devices/system/node/online, ascending. Empty if the system does not say.
std::vector<NodeFiles> read_node_files(const std::filesystem::path& root);

/// Reserved huge pages now, of the pools in `directory`/hugepages: a node's directory, or sys/kernel/mm for all nodes.
ReservedPages read_reserved_pages(const std::filesystem::path& directory);

/// The nodes whose memory the cpuset of this process allows (Mems_allowed_list of /proc/self/status); nothing if the
/// system does not say.
std::optional<std::vector<int>> read_allowed_nodes(const std::filesystem::path& root);

/// Why the system's description of CPUs cannot be trusted, as the beginning of a sentence; "" if it can.
std::string describe_missing_files(const std::filesystem::path& root);

}  // namespace cpuinfer::numa
