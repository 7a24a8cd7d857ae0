#include "tools/doctor_nodes.h"

#include <fstream>
#include <iterator>
#include <map>
#include <sstream>

#include "base/format.h"
#include "base/types.h"
#include "numa/cpu_list.h"
#include "tools/doctor_checks.h"

namespace cpuinfer::tools {
namespace {

namespace fs = std::filesystem;

Check check_nodes(const Machine& machine) {
  const numa::Topology& topology = machine.topology;
  std::string text;
  for (const numa::Node& node : topology.nodes())
    text += format("{}node {}: {} core{}, {} ({} free)", text.empty() ? "" : "; ", node.id, node.cores,
                   plural(node.cores), format_bytes(node.memory_bytes), format_bytes(node.free_bytes));
  for (const numa::Node& node : topology.memory_only())
    text += format("; node {}: {} without CPUs, not used", node.id, format_bytes(node.memory_bytes));
  for (const numa::MemorylessNode& node : topology.memoryless())
    text +=
        format("; {}: CPU{} {} without memory, served by node {}", node.id < 0 ? "no node" : format("node {}", node.id),
               plural(std::ssize(node.cpus)), numa::list_text(node.cpus), node.served_by);
  if (!topology.doubt().empty())
    return warn("nodes", format("{} (but {})", text, topology.doubt()), "let this process read /sys, or use --no-pin");
  if (!topology.memoryless().empty())
    return warn("nodes", text,
                "put memory into all nodes, or let the process's cpuset allow what they have (cpuset.mems)");
  return ok("nodes", text);
}

Check check_cpuset(const Machine& machine) {
  const std::span<const int> forbidden = machine.topology.unreachable_memory();
  if (forbidden.empty()) return ok("cpuset", "this process may use the memory of all nodes");
  const std::string nodes = numa::list_text(forbidden);
  return warn("cpuset",
              format("this process may not use the memory of node{} {}", plural(std::ssize(forbidden)), nodes),
              format("add {} to cpuset.mems of its container or service (docker: --cpuset-mems)", nodes));
}

Check check_balancing(const Machine& machine) {
  const std::string mode = first_line(machine.root / "proc/sys/kernel/numa_balancing");
  if (machine.topology.nodes().size() > 1 && !mode.empty() && mode != "0")
    return warn("balancing", "the kernel moves pages between nodes while cpuinfer runs",
                "sudo sysctl kernel.numa_balancing=0");
  return ok("balancing", machine.topology.nodes().size() > 1 ? "the kernel leaves pages on their nodes" : "one node");
}

Check check_reclaim(const Machine& machine) {
  const std::string mode = first_line(machine.root / "proc/sys/vm/zone_reclaim_mode");
  if (!mode.empty() && mode != "0")
    return warn(
        "reclaim",
        format("a full node drops page cache instead of using its neighbour (vm.zone_reclaim_mode is {}), which "
               "stops programs for a while",
               mode),
        "sudo sysctl vm.zone_reclaim_mode=0");
  return ok("reclaim", "full nodes use their neighbours");
}

/// Free memory of a node by the sizes of its pieces.
struct FreeBlocks {
  int64_t bytes = 0;
  int64_t huge_bytes = 0;  // in pieces of 2 MiB or more
};

/// Lines of /proc/buddyinfo: "Node 0, zone   Normal   128  4712 ...", counts of free pieces of 4 KiB, 8 KiB and so on.
std::map<int, FreeBlocks> free_blocks(const fs::path& root) {
  std::map<int, FreeBlocks> nodes;
  std::ifstream file(root / "proc/buddyinfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string skip, zone;
    int id = 0;
    char comma = 0;
    if (!(words >> skip >> id >> comma >> skip >> zone) || comma != ',') continue;
    FreeBlocks& node = nodes[id];
    int64_t size = 4_KiB;
    for (int64_t count = 0; words >> count && size <= 1_GiB; size *= 2) {
      node.bytes += count * size;
      if (size >= 2_MiB) node.huge_bytes += count * size;
    }
  }
  return nodes;
}

Check check_fragments(const Machine& machine) {
  // With less than this free, weights take page cache that the kernel drops first, and what is free says little.
  constexpr int64_t kEnough = 1_GiB;
  const std::map<int, FreeBlocks> blocks = free_blocks(machine.root);
  if (blocks.empty()) return ok("fragments", "the system does not say");
  std::string bad;
  for (const numa::Node& node : machine.topology.nodes()) {
    const auto found = blocks.find(node.id);
    if (found == blocks.end()) continue;
    const auto& [bytes, huge_bytes] = found->second;
    if (bytes >= kEnough && huge_bytes < bytes / 2)
      bad += format("{}node {}: only {} of {} free memory", bad.empty() ? "" : "; ", node.id, format_bytes(huge_bytes),
                    format_bytes(bytes));
  }
  if (bad.empty()) return ok("fragments", "free memory is in pieces large enough for huge pages");
  return warn("fragments", bad + " are in pieces of 2 MiB or more, which huge pages need",
              "echo 1 | sudo tee /proc/sys/vm/compact_memory (after: echo 1 | sudo tee /proc/sys/vm/drop_caches)");
}

}  // namespace

std::vector<Check> check_memory_nodes(const Machine& machine) {
  return {check_nodes(machine), check_cpuset(machine), check_balancing(machine), check_reclaim(machine),
          check_fragments(machine)};
}

}  // namespace cpuinfer::tools
