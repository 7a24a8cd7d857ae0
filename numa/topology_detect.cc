// Topology from hwloc and the system's files.
#include <hwloc.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>

#include "base/format.h"
#include "numa/topology.h"

#ifndef CPUINFER_TEAM_THREADS
#include <omp.h>
#endif

namespace cpuinfer::numa {
namespace {

namespace fs = std::filesystem;

struct DestroyTopology {
  void operator()(hwloc_topology* topology) const { hwloc_topology_destroy(topology); }
};
using TopologyHandle = std::unique_ptr<hwloc_topology, DestroyTopology>;

struct FreeBitmap {
  void operator()(hwloc_bitmap_s* bitmap) const { hwloc_bitmap_free(bitmap); }
};
using Bitmap = std::unique_ptr<hwloc_bitmap_s, FreeBitmap>;

/// "MemAvailable" and the like of /proc/meminfo in bytes; -1 if it is not there.
int64_t system_memory_bytes(const fs::path& root, std::string_view wanted) {
  std::ifstream file(root / "proc/meminfo");
  std::string key;
  for (int64_t kib = 0; file >> key >> kib; file.ignore(256, '\n'))
    if (key == wanted) return kib * 1024;
  return -1;
}

HugePages read_huge_pages(const fs::path& root) {
  const fs::path directory = root / "sys/kernel/mm";
  HugePages pages = {.reserved = read_reserved_pages(directory)};
  // "always [madvise] never": the chosen word is in brackets.
  std::ifstream file(directory / "transparent_hugepage/enabled");
  std::string modes;
  std::getline(file, modes);
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

/// Takes the CPUs of `cpus` out of it, in hwloc's order: siblings are neighbours. Without core objects (some virtual
/// machines) every CPU counts as a core.
std::vector<SystemCpu> take_cpus(hwloc_topology_t topology, hwloc_bitmap_s* cpus, hwloc_const_bitmap_t wanted) {
  std::vector<SystemCpu> taken;
  for (hwloc_obj_t pu = nullptr; (pu = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_PU, pu)) != nullptr;) {
    if (!hwloc_bitmap_isset(cpus, pu->os_index) || !hwloc_bitmap_isset(wanted, pu->os_index)) continue;
    const hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(topology, HWLOC_OBJ_CORE, pu);
    // Below 0 for CPUs without a core object, so that they are not taken for siblings of others.
    const int number =
        core != nullptr ? static_cast<int>(core->logical_index) : -1 - static_cast<int>(pu->logical_index);
    taken.push_back({static_cast<int>(pu->os_index), number});
  }
  hwloc_bitmap_andnot(cpus, cpus, wanted);
  return taken;
}

/// hwloc's latencies between its nodes, as the firmware gives them; 0 where it has none.
std::vector<std::vector<int>> hwloc_distances(hwloc_topology_t topology, const std::vector<SystemNode>& nodes) {
  std::vector<std::vector<int>> rows(nodes.size(), std::vector<int>(nodes.size(), 0));
  const auto place = [&](hwloc_obj_t object) {
    return std::ranges::find(nodes, static_cast<int>(object->os_index), &SystemNode::id) - nodes.begin();
  };
  unsigned count = 1;
  hwloc_distances_s* matrix = nullptr;
  if (hwloc_distances_get_by_name(topology, "NUMALatency", &count, &matrix, 0) != 0 || count == 0) return rows;
  for (unsigned from = 0; from < matrix->nbobjs; ++from) {
    for (unsigned to = 0; to < matrix->nbobjs; ++to) {
      const auto row = static_cast<size_t>(place(matrix->objs[from]));
      const auto column = static_cast<size_t>(place(matrix->objs[to]));
      if (row < rows.size() && column < rows.size())
        rows[row][column] = static_cast<int>(matrix->values[from * matrix->nbobjs + to]);
    }
  }
  hwloc_distances_release(topology, matrix);
  return rows;
}

/// hwloc's nodes with those CPUs of `usable` that are nearest to each, which it takes out of `usable`. `computing`: ids
/// of nodes that have CPUs of their own; memory without any is listed by hwloc beside the CPUs of a neighbour.
std::vector<SystemNode> take_nodes(hwloc_topology_t source, hwloc_bitmap_s* usable, const std::vector<int>& computing) {
  std::vector<hwloc_obj_t> objects;
  for (hwloc_obj_t object = nullptr;
       (object = hwloc_get_next_obj_by_type(source, HWLOC_OBJ_NUMANODE, object)) != nullptr;)
    objects.push_back(object);
  std::ranges::stable_sort(objects, {}, [&](hwloc_obj_t object) {
    const bool first = std::ranges::find(computing, static_cast<int>(object->os_index)) != computing.end();
    return std::pair(!first, object->os_index);
  });
  std::vector<SystemNode> nodes;
  for (const hwloc_obj_t object : objects) {
    SystemNode node;
    node.id = static_cast<int>(object->os_index);
    node.cpus = take_cpus(source, usable, object->cpuset);
    node.memory_bytes = static_cast<int64_t>(object->attr->numanode.local_memory);
    nodes.push_back(std::move(node));
  }
  return nodes;
}

/// Completes hwloc's nodes by the system's files: hwloc drops nodes that the cpuset forbids and, where control groups
/// are mounted, nodes without memory, and their CPUs are then in no node.
void add_files(SystemNodes& system, hwloc_topology_t source, hwloc_bitmap_s* usable, const fs::path& root,
               const std::vector<NodeFiles>& files) {
  const std::optional<std::vector<int>> allowed = read_allowed_nodes(root);
  for (const NodeFiles& of_node : files) {
    if (std::ranges::find(system.nodes, of_node.id, &SystemNode::id) != system.nodes.end()) continue;
    const Bitmap cpus(hwloc_bitmap_alloc());
    for (int cpu : of_node.cpus) hwloc_bitmap_set(cpus.get(), static_cast<unsigned>(cpu));
    SystemNode node;
    node.id = of_node.id;
    node.cpus = take_cpus(source, usable, cpus.get());
    node.memory_bytes = of_node.memory_bytes;
    node.allowed = allowed.has_value();  // see below; without a word of the system hwloc's omission counts
    system.nodes.push_back(std::move(node));
  }
  system.distances.resize(system.nodes.size());
  for (size_t i = 0; i < system.nodes.size(); ++i) {
    SystemNode& node = system.nodes[i];
    system.distances[i].resize(system.nodes.size(), 0);
    const auto own = std::ranges::find(files, node.id, &NodeFiles::id);
    if (own == files.end()) continue;
    node.free_bytes = own->free_bytes;
    node.reserved = own->reserved;
    if (allowed && std::ranges::find(*allowed, node.id) == allowed->end()) node.allowed = false;
    for (size_t j = 0; j < system.nodes.size(); ++j) {
      const auto to = std::ranges::find(files, system.nodes[j].id, &NodeFiles::id) - files.begin();
      if (static_cast<size_t>(to) < own->distances.size()) system.distances[i][j] = own->distances[to];
    }
  }
}

}  // namespace

/// Fills a Topology from a loaded hwloc topology.
class TopologyReader {
 public:
  static Result<Topology> read(hwloc_topology_t source, bool is_this_machine, const fs::path& root) {
    // hwloc already leaves out what the cpuset forbids; the affinity mask (taskset, a batch system) it does not.
    const Bitmap usable(hwloc_bitmap_dup(hwloc_topology_get_allowed_cpuset(source)));
    std::vector<NodeFiles> files;
    std::vector<int> computing;
    if (is_this_machine) {
      const Bitmap bound = bound_cpus(source);
      hwloc_bitmap_and(usable.get(), usable.get(), bound.get());
      files = read_node_files(root);
      for (const NodeFiles& node : files)
        if (!node.cpus.empty()) computing.push_back(node.id);
    }
    SystemNodes system;
    system.nodes = take_nodes(source, usable.get(), computing);
    system.distances = hwloc_distances(source, system.nodes);
    if (is_this_machine) add_files(system, source, usable.get(), root, files);
    system.homeless = take_cpus(source, usable.get(), hwloc_topology_get_topology_cpuset(source));
    // Guests whose memory grows and shrinks (balloons, hot-plug) may count less in their only node than they have.
    if (is_this_machine && system.nodes.size() == 1) {
      SystemNode& node = system.nodes.front();
      if (node.free_bytes < 0) node.free_bytes = node.memory_bytes;
      node.memory_bytes = std::max(node.memory_bytes, system_memory_bytes(root, "MemTotal:"));
      node.free_bytes = std::max(node.free_bytes, system_memory_bytes(root, "MemAvailable:"));
    }
    TRY_ASSIGN(Topology topology, Topology::from(std::move(system)));
    topology.is_this_machine_ = is_this_machine;
    topology.cpu_model_ = is_this_machine ? read_cpu_model(source) : "synthetic";
    if (is_this_machine) {
      topology.huge_pages_ = read_huge_pages(root);
      topology.doubt_ = describe_missing_files(root);
    }
    return topology;
  }
};

Result<Topology> Topology::detect(const fs::path& root) {
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return fail(ErrorCode::kRuntime, "hwloc could not start: no memory");
  const TopologyHandle handle(raw);
  if (hwloc_topology_load(raw) != 0)
    return fail(ErrorCode::kRuntime, "hwloc could not read the machine's topology; is /sys mounted?");
  // HWLOC_SYNTHETIC and HWLOC_XMLFILE in the environment describe another machine: nothing to pin to there.
  return TopologyReader::read(raw, hwloc_topology_is_thissystem(raw) != 0, root);
}

Result<Topology> Topology::synthetic(std::string_view description) {
  // hwloc takes minutes and more for machines that nobody has. Its notation is a number for each level, "pu:2" or "2".
  constexpr double kMostCpus = 16384;
  double cpus = 1;
  std::istringstream levels{std::string(description)};
  for (std::string level; levels >> level;)
    cpus *= std::max(std::strtod(level.c_str() + level.find(':') + 1, nullptr), 1.0);
  if (cpus > kMostCpus)
    return fail(ErrorCode::kUsage,
                format("\"{}\" describes {:.0f} CPUs; it must be at most {:.0f}", description, cpus, kMostCpus));
  hwloc_topology_t raw = nullptr;
  if (hwloc_topology_init(&raw) != 0) return fail(ErrorCode::kRuntime, "hwloc could not start: no memory");
  const TopologyHandle handle(raw);
  if (hwloc_topology_set_synthetic(raw, std::string(description).c_str()) != 0 || hwloc_topology_load(raw) != 0)
    return fail(ErrorCode::kUsage,
                format("\"{}\" describes no machine; expected something like \"numa:2 core:8 pu:2\"", description));
  return TopologyReader::read(raw, false, "/");
}

}  // namespace cpuinfer::numa
