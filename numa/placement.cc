#include "numa/placement.h"

#include <numaif.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "base/check.h"
#include "base/format.h"
#include "base/types.h"
#include "numa/system_nodes.h"

namespace cpuinfer::numa {

Result<PageCount> count_pages(const void* begin, int64_t bytes, int node_id, int64_t most_pages) {
  ENSURE(bytes >= 0 && most_pages >= 1, "a range has no negative length, and at least one page is looked at");
  PageCount count;
  if (bytes == 0) return count;
  const int64_t page = sysconf(_SC_PAGESIZE);
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = address - address % static_cast<uintptr_t>(page);
  const int64_t pages = ceil_div(static_cast<int64_t>(address - first) + bytes, page);
  const int64_t looked_at = std::min(pages, most_pages);

  constexpr int64_t kBatch = 1024;
  std::array<void*, kBatch> addresses;
  std::array<int, kBatch> status;
  for (int64_t next = 0; next < looked_at;) {
    const int64_t batch = std::min(kBatch, looked_at - next);
    for (int64_t i = 0; i < batch; ++i) {
      // next / looked_at of the way, without overflow: pages < 2^45.
      const auto at = static_cast<int64_t>(static_cast<__int128>(next + i) * pages / looked_at);
      addresses[static_cast<size_t>(i)] = reinterpret_cast<void*>(first + static_cast<uintptr_t>(at * page));
    }
    // Without target nodes it only says where pages are.
    if (move_pages(0, static_cast<unsigned long>(batch), addresses.data(), nullptr, status.data(), 0) != 0)
      return fail(ErrorCode::kRuntime,
                  format("the system does not say on which node memory lies (move_pages: {}); allow move_pages in the "
                         "seccomp profile of the container, or give it CAP_SYS_NICE",
                         std::strerror(errno)));
    for (int64_t i = 0; i < batch; ++i) {
      const int node = status[static_cast<size_t>(i)];
      // Below 0: -ENOENT for a page that is not there, -EFAULT for the page of zeros that unwritten memory reads.
      ++(node < 0 ? count.untouched : node == node_id ? count.local : count.other);
    }
    next += batch;
  }
  return count;
}

std::string misplacement_cause(const Topology& topology, int node, const std::filesystem::path& root) {
  const Node& wanted = topology.nodes()[static_cast<size_t>(node)];
  if (!topology.binds_memory()) return "memory was not bound to nodes (--no-pin), so the system chose";
  const auto forbidden = topology.unreachable_memory();
  if (std::find(forbidden.begin(), forbidden.end(), wanted.id) != forbidden.end())
    return format("the cpuset of this process forbids the memory of node {} (cpuset.mems)", wanted.id);
  for (const NodeFiles& found : read_node_files(root)) {
    if (found.id == wanted.id && found.free_bytes >= 0 && found.free_bytes < 256_MiB)
      return format("node {} was full: it has {} free now; end other programs that use it, or plan for less", wanted.id,
                    format_bytes(found.free_bytes));
  }
  std::ifstream balancing(root / "proc/sys/kernel/numa_balancing");
  if (int on = 0; balancing >> on && on != 0)
    return format("automatic NUMA balancing may move pages (sysctl kernel.numa_balancing is {}); set it to 0", on);
  return format("another program took the memory of node {} while this one loaded", wanted.id);
}

}  // namespace cpuinfer::numa
