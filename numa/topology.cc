#include "numa/topology.h"

#include <algorithm>
#include <map>

#include "base/check.h"
#include "base/format.h"
#include "numa/cpu_list.h"

namespace cpuinfer::numa {
namespace {

constexpr int kLocal = 10;
constexpr int kUnknown = 20;

/// Gives `node` the CPUs of `cpus`: one of each core first, then the second of each core, and so on.
void set_cpus(Node& node, const std::vector<SystemCpu>& cpus) {
  std::vector<std::vector<SystemCpu>> by_place;  // by_place[p]: the p-th CPU of each core
  std::map<int, size_t> seen;                    // CPUs of a core so far
  for (const SystemCpu& cpu : cpus) {
    const size_t place = seen[cpu.core]++;
    if (place == by_place.size()) by_place.emplace_back();
    by_place[place].push_back(cpu);
  }
  node.cores = by_place.empty() ? 0 : static_cast<int>(by_place[0].size());
  node.cpus.clear();
  node.core_of.clear();
  for (const std::vector<SystemCpu>& of_place : by_place) {
    for (const SystemCpu& cpu : of_place) {
      node.cpus.push_back(cpu.id);
      node.core_of.push_back(cpu.core);
    }
  }
}

std::vector<int> ids_of(std::span<const SystemCpu> cpus) {
  std::vector<int> ids;
  for (const SystemCpu& cpu : cpus) ids.push_back(cpu.id);
  std::ranges::sort(ids);
  return ids;
}

std::vector<int> ids_of(std::span<const Node> nodes) {
  std::vector<int> ids;
  for (const Node& node : nodes) ids.push_back(node.id);
  return ids;
}

bool holds(const std::vector<int>& list, int value) { return std::ranges::find(list, value) != list.end(); }

/// "node 0", "nodes 0-3".
std::string nodes_text(const std::vector<int>& ids) {
  return format("node{} {}", ids.size() == 1 ? "" : "s", list_text(ids));
}

}  // namespace

Result<Topology> Topology::from(SystemNodes system) {
  std::ranges::sort(system.nodes, {}, &SystemNode::id);
  Topology topology;
  for (size_t from = 0; from < system.nodes.size(); ++from) {
    std::vector<int> row = from < system.distances.size() ? system.distances[from] : std::vector<int>{};
    row.resize(system.nodes.size(), 0);
    topology.distances_.emplace_back(system.nodes[from].id, std::move(row));
  }
  // A sandbox may hide how much there is.
  const bool sizes_known = std::ranges::any_of(system.nodes, [](const SystemNode& n) { return n.memory_bytes > 0; });
  std::vector<SystemNode*> hosts, idle;
  std::vector<MemorylessNode> orphans;
  std::vector<std::vector<SystemCpu>> orphan_cpus;
  for (SystemNode& node : system.nodes) {
    if (!node.allowed && node.memory_bytes > 0) topology.unreachable_memory_.push_back(node.id);
    if (node.allowed && (node.memory_bytes > 0 || !sizes_known)) {
      (node.cpus.empty() ? idle : hosts).push_back(&node);
    } else if (!node.cpus.empty()) {
      orphans.push_back({node.id, ids_of(node.cpus), 0});
      orphan_cpus.push_back(std::move(node.cpus));
    }
  }
  if (!system.homeless.empty()) {
    orphans.push_back({-1, ids_of(system.homeless), 0});
    orphan_cpus.push_back(std::move(system.homeless));
  }
  topology.machine_memories_ = static_cast<int>(hosts.size() + idle.size());
  // The nearest node that computes anyway; memory without CPUs only where there is no other.
  const std::vector<SystemNode*>& near = hosts.empty() ? idle : hosts;
  for (size_t i = 0; i < orphans.size() && !near.empty(); ++i) {
    SystemNode& host = **std::ranges::min_element(
        near, {}, [&](const SystemNode* node) { return topology.distance_of_ids(orphans[i].id, node->id); });
    orphans[i].served_by = host.id;
    host.cpus.insert(host.cpus.end(), orphan_cpus[i].begin(), orphan_cpus[i].end());
  }
  topology.memoryless_ = std::move(orphans);

  for (const SystemNode& from : system.nodes) {
    if (!from.allowed || (from.memory_bytes == 0 && sizes_known)) continue;
    Node node{.id = from.id,
              .cpus = {},
              .core_of = {},
              .memory_bytes = from.memory_bytes,
              .free_bytes = from.free_bytes < 0 ? from.memory_bytes : from.free_bytes,
              .reserved = from.reserved};
    set_cpus(node, from.cpus);
    (node.cpus.empty() ? topology.memory_only_ : topology.nodes_).push_back(std::move(node));
  }
  if (topology.nodes_.empty())
    return fail(ErrorCode::kRuntime,
                "the system names no NUMA node with a CPU and memory that this process may use; look at "
                "/sys/devices/system/node and the process's cpuset");
  return topology;
}

int Topology::index_of(int id) const {
  const auto found = std::ranges::find(nodes_, id, &Node::id);
  return found == nodes_.end() ? -1 : static_cast<int>(found - nodes_.begin());
}

Result<void> Topology::check_nodes(const std::vector<int>& node_ids) const {
  const std::string there = nodes_text(ids_of(nodes_));
  for (int id : node_ids) {
    if (index_of(id) >= 0) continue;
    if (std::ranges::find(memory_only_, id, &Node::id) != memory_only_.end())
      return fail(ErrorCode::kUsage,
                  format("node {} has memory but no CPU that may be used; threads can run on {}", id, there));
    const auto memoryless = std::ranges::find(memoryless_, id, &MemorylessNode::id);
    if (memoryless != memoryless_.end())
      return fail(ErrorCode::kUsage, format("node {} has no memory that may be used, its CPUs belong to node {}; this "
                                            "machine has {}",
                                            id, memoryless->served_by, there));
    return fail(ErrorCode::kUsage, format("node {} does not exist or may not be used; this machine has {}", id, there));
  }
  return {};
}

Result<void> Topology::check_cpus(const std::vector<int>& node_ids, const std::vector<int>& cpu_ids) const {
  std::vector<int> all;
  for (const Node& node : nodes_) all.insert(all.end(), node.cpus.begin(), node.cpus.end());
  std::ranges::sort(all);
  for (int cpu : cpu_ids)
    if (!holds(all, cpu))
      return fail(ErrorCode::kUsage, format("CPU {} does not exist or may not be used; this process may use CPU{} {}",
                                            cpu, all.size() == 1 ? "" : "s", list_text(all)));
  if (node_ids.empty()) return {};
  for (const Node& node : nodes_) {
    const bool wanted = holds(node_ids, node.id);
    const auto in_use = std::ranges::find_if(cpu_ids, [&](int cpu) { return holds(node.cpus, cpu); });
    if (in_use != cpu_ids.end() && !wanted)
      return fail(ErrorCode::kUsage, format("CPU {} is on node {}, but only {} {} to be used", *in_use, node.id,
                                            nodes_text(node_ids), node_ids.size() == 1 ? "is" : "are"));
    if (in_use == cpu_ids.end() && wanted)
      return fail(ErrorCode::kUsage,
                  format("node {} is to be used, but none of its CPUs is among CPUs {}", node.id, list_text(cpu_ids)));
  }
  return {};
}

Result<Topology> Topology::restricted(const std::vector<int>& node_ids, const std::vector<int>& cpu_ids) const {
  TRY(check_nodes(node_ids));
  if (!cpu_ids.empty()) TRY(check_cpus(node_ids, cpu_ids));
  Topology part = *this;
  std::erase_if(part.nodes_, [&](const Node& node) { return !node_ids.empty() && !holds(node_ids, node.id); });
  if (cpu_ids.empty()) return part;
  for (Node& node : part.nodes_) {
    std::vector<SystemCpu> kept;
    for (size_t i = 0; i < node.cpus.size(); ++i)
      if (holds(cpu_ids, node.cpus[i])) kept.push_back({node.cpus[i], node.core_of[i]});
    std::ranges::stable_sort(kept, {}, &SystemCpu::core);
    set_cpus(node, kept);
  }
  std::erase_if(part.nodes_, [](const Node& node) { return node.cpus.empty(); });
  return part;
}

Topology Topology::unpinned() const {
  Topology same = *this;
  same.unpinned_ = true;
  return same;
}

int Topology::distance_of_ids(int from, int to) const {
  if (from == to) return kLocal;
  const auto place = [&](int id) {
    return std::ranges::find(distances_, id, [](const auto& row) { return row.first; });
  };
  const auto row = place(from);
  const auto column = place(to);
  if (row == distances_.end() || column == distances_.end()) return kUnknown;
  const int found = row->second[static_cast<size_t>(column - distances_.begin())];
  return found > 0 ? found : kUnknown;
}

Topology Topology::with_memory(std::span<const int64_t> node_bytes) const {
  ENSURE(node_bytes.size() == nodes_.size(), "every node has a size");
  Topology other = *this;
  for (size_t n = 0; n < nodes_.size(); ++n) other.nodes_[n].memory_bytes = other.nodes_[n].free_bytes = node_bytes[n];
  return other;
}

int Topology::cores() const {
  int count = 0;
  for (const Node& node : nodes_) count += node.cores;
  return count;
}

int Topology::cpus() const {
  size_t count = 0;
  for (const Node& node : nodes_) count += node.cpus.size();
  return static_cast<int>(count);
}

}  // namespace cpuinfer::numa
