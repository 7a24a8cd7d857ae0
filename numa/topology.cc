#include "numa/topology.h"

#include <hwloc.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <sstream>
#include <string_view>

#include "base/check.h"
#include "base/format.h"

#ifndef CPUINFER_TEAM_THREADS
#include <omp.h>
#endif

namespace cpuinfer::numa {
namespace {

struct DestroyTopology {
  void operator()(hwloc_topology* topology) const { hwloc_topology_destroy(topology); }
};
using TopologyHandle = std::unique_ptr<hwloc_topology, DestroyTopology>;

struct FreeBitmap {
  void operator()(hwloc_bitmap_s* bitmap) const { hwloc_bitmap_free(bitmap); }
};
using Bitmap = std::unique_ptr<hwloc_bitmap_s, FreeBitmap>;

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// A file that holds one number; 0 if it is not there.
int64_t number_in(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  file >> value;
  return file ? value : 0;
}

/// Free memory of a node: what is free, and the page cache, which the kernel drops first. Lines of the file look like
/// "Node 0 MemFree:  21023816 kB". -1 if the system does not say.
int64_t node_free_bytes(int id) {
  std::ifstream file(format("/sys/devices/system/node/node{}/meminfo", id));
  int64_t free_kib = -1;
  int64_t cache_kib = 0;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string node, number, key;
    int64_t kib = 0;
    if (!(words >> node >> number >> key >> kib)) continue;
    if (key == "MemFree:") free_kib = kib;
    if (key == "Active(file):" || key == "Inactive(file):") cache_kib += kib;
  }
  return free_kib < 0 ? -1 : (free_kib + cache_kib) * 1024;
}

/// "MemAvailable" and the like of /proc/meminfo in bytes; -1 if it is not there.
int64_t system_memory_bytes(std::string_view wanted) {
  std::ifstream file("/proc/meminfo");
  std::string key;
  for (int64_t kib = 0; file >> key >> kib; file.ignore(256, '\n'))
    if (key == wanted) return kib * 1024;
  return -1;
}

HugePages read_huge_pages() {
  const std::string dir = "/sys/kernel/mm/";
  HugePages pages;
  pages.total_2m = number_in(dir + "hugepages/hugepages-2048kB/nr_hugepages");
  pages.free_2m = number_in(dir + "hugepages/hugepages-2048kB/free_hugepages");
  pages.total_1g = number_in(dir + "hugepages/hugepages-1048576kB/nr_hugepages");
  pages.free_1g = number_in(dir + "hugepages/hugepages-1048576kB/free_hugepages");
  // "always [madvise] never": the chosen word is in brackets.
  const std::string modes = first_line(dir + "transparent_hugepage/enabled");
  const size_t open = modes.find('[');
  const size_t close = modes.find(']');
  if (open != modes.npos && close != modes.npos && open < close)
    pages.transparent = modes.substr(open + 1, close - open - 1);
  return pages;
}

std::string read_cpu_model(hwloc_topology_t topology) {
  const char* const model = hwloc_obj_get_info_by_name(hwloc_get_root_obj(topology), "CPUModel");
  if (model != nullptr) return model;
  const hwloc_obj_t package = hwloc_get_obj_by_type(topology, HWLOC_OBJ_PACKAGE, 0);
  const char* const of_package = package == nullptr ? nullptr : hwloc_obj_get_info_by_name(package, "CPUModel");
  return of_package == nullptr ? "unknown" : of_package;
}

/// The CPUs of `cpus`, one of each core first, then the second of each core, and so on. `cores`: how many cores.
std::vector<int> cores_first(hwloc_topology_t topology, hwloc_const_bitmap_t cpus, int& cores) {
  // by_place[p]: the p-th usable CPU of each core, in hwloc's order. Without core objects (some virtual machines) every
  // CPU counts as a core.
  std::vector<std::vector<int>> by_place;
  hwloc_obj_t last_core = nullptr;
  size_t place = 0;
  for (hwloc_obj_t pu = nullptr; (pu = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_PU, pu)) != nullptr;) {
    if (!hwloc_bitmap_isset(cpus, pu->os_index)) continue;
    const hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(topology, HWLOC_OBJ_CORE, pu);
    place = core != nullptr && core == last_core ? place + 1 : 0;
    last_core = core;
    if (place == by_place.size()) by_place.emplace_back();
    by_place[place].push_back(static_cast<int>(pu->os_index));
  }
  cores = by_place.empty() ? 0 : static_cast<int>(by_place[0].size());
  std::vector<int> order;
  for (const std::vector<int>& of_place : by_place) order.insert(order.end(), of_place.begin(), of_place.end());
  return order;
}

/// The CPUs that the calling thread may run on. OMP_PROC_BIND and OMP_PLACES make OpenMP bind the initial thread to
/// the first place before main() starts; then all places together are what the process may use.
Bitmap bound_cpus(hwloc_topology_t topology) {
  Bitmap bound(hwloc_bitmap_alloc());
  if (hwloc_get_cpubind(topology, bound.get(), HWLOC_CPUBIND_THREAD) != 0) hwloc_bitmap_fill(bound.get());
#ifndef CPUINFER_TEAM_THREADS
  const auto add_place = [](hwloc_bitmap_s* set, int place) {
    std::vector<int> cpus(static_cast<size_t>(omp_get_place_num_procs(place)));
    omp_get_place_proc_ids(place, cpus.data());
    for (int cpu : cpus) hwloc_bitmap_set(set, static_cast<unsigned>(cpu));
  };
  if (const int place = omp_get_place_num(); place >= 0) {
    const Bitmap here(hwloc_bitmap_alloc());
    add_place(here.get(), place);
    if (hwloc_bitmap_isequal(here.get(), bound.get()))
      for (int other = 0; other < omp_get_num_places(); ++other) add_place(bound.get(), other);
  }
#endif
  return bound;
}

}  // namespace

/// Fills a Topology from a loaded hwloc topology.
class TopologyReader {
 public:
  static Result<Topology> read(hwloc_topology_t source, bool is_this_machine) {
    Topology topology;
    topology.is_this_machine_ = is_this_machine;
    topology.cpu_model_ = is_this_machine ? read_cpu_model(source) : "synthetic";
    if (is_this_machine) topology.huge_pages_ = read_huge_pages();

    // hwloc already leaves out what the cpuset forbids; the affinity mask (taskset, a batch system) it does not.
    const Bitmap usable(hwloc_bitmap_dup(hwloc_topology_get_allowed_cpuset(source)));
    if (is_this_machine) {
      const Bitmap bound = bound_cpus(source);
      hwloc_bitmap_and(usable.get(), usable.get(), bound.get());
    }

    for (hwloc_obj_t object = nullptr;
         (object = hwloc_get_next_obj_by_type(source, HWLOC_OBJ_NUMANODE, object)) != nullptr;) {
      const Bitmap cpus(hwloc_bitmap_alloc());
      hwloc_bitmap_and(cpus.get(), object->cpuset, usable.get());
      // Memory without CPUs (CXL expanders, HBM as a node of its own) and a second memory of the same CPUs: nobody
      // computes there.
      hwloc_bitmap_andnot(usable.get(), usable.get(), cpus.get());
      Node node;
      node.id = static_cast<int>(object->os_index);
      node.cpus = cores_first(source, cpus.get(), node.cores);
      if (node.cpus.empty()) continue;
      node.memory_bytes = static_cast<int64_t>(object->attr->numanode.local_memory);
      node.free_bytes = is_this_machine ? node_free_bytes(node.id) : node.memory_bytes;
      if (node.free_bytes < 0) node.free_bytes = node.memory_bytes;
      topology.nodes_.push_back(std::move(node));
    }
    // Guests whose memory grows and shrinks (balloons, hot-plug) may count less in their only node than they have.
    if (is_this_machine && hwloc_get_nbobjs_by_type(source, HWLOC_OBJ_NUMANODE) == 1 && topology.nodes_.size() == 1) {
      Node& node = topology.nodes_.front();
      node.memory_bytes = std::max(node.memory_bytes, system_memory_bytes("MemTotal:"));
      node.free_bytes = std::max(node.free_bytes, system_memory_bytes("MemAvailable:"));
    }
    if (topology.nodes_.empty())
      return fail(
          ErrorCode::kRuntime,
          "the system names no NUMA node with a CPU that this process may use; look at /sys/devices/system/node "
          "and the process's cpuset");
    std::sort(topology.nodes_.begin(), topology.nodes_.end(), [](const Node& a, const Node& b) { return a.id < b.id; });
    return topology;
  }
};

Result<Topology> Topology::detect() {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return fail(ErrorCode::kRuntime, "hwloc could not start: no memory");
  const TopologyHandle handle(raw);
  if (hwloc_topology_load(raw) != 0)
    return fail(ErrorCode::kRuntime, "hwloc could not read the machine's topology; is /sys mounted?");
  // HWLOC_SYNTHETIC and HWLOC_XMLFILE in the environment describe another machine: nothing to pin to there.
  return TopologyReader::read(raw, hwloc_topology_is_thissystem(raw) != 0);
}

Result<Topology> Topology::synthetic(std::string_view description) {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return fail(ErrorCode::kRuntime, "hwloc could not start: no memory");
  const TopologyHandle handle(raw);
  if (hwloc_topology_set_synthetic(raw, std::string(description).c_str()) != 0 || hwloc_topology_load(raw) != 0)
    return fail(ErrorCode::kUsage,
                format("\"{}\" describes no machine; expected something like \"numa:2 core:8 pu:2\"", description));
  return TopologyReader::read(raw, false);
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
