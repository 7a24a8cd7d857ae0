#include "numa/system_nodes.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "base/format.h"
#include "numa/cpu_list.h"

namespace cpuinfer::numa {
namespace {

namespace fs = std::filesystem;

std::string first_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// A file that holds one number; 0 if it is not there.
int64_t number_in(const fs::path& path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : 0;
}

fs::path node_directory(const fs::path& root, int id) { return root / format("sys/devices/system/node/node{}", id); }

/// Lines of meminfo look like "Node 0 MemFree:  21023816 kB". Page cache counts as free: the kernel drops it first.
void read_meminfo(const fs::path& path, NodeFiles& node) {
  std::ifstream file(path);
  int64_t free_kib = -1;
  int64_t cache_kib = 0;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string skip, number, key;
    int64_t kib = 0;
    if (!(words >> skip >> number >> key >> kib)) continue;
    if (key == "MemTotal:") node.memory_bytes = kib * 1024;
    if (key == "MemFree:") free_kib = kib;
    if (key == "Active(file):" || key == "Inactive(file):") cache_kib += kib;
  }
  if (free_kib >= 0) node.free_bytes = (free_kib + cache_kib) * 1024;
}

}  // namespace

ReservedPages read_reserved_pages(const fs::path& directory) {
  const fs::path huge = directory / "hugepages";
  return {.total_2m = number_in(huge / "hugepages-2048kB/nr_hugepages"),
          .free_2m = number_in(huge / "hugepages-2048kB/free_hugepages"),
          .total_1g = number_in(huge / "hugepages-1048576kB/nr_hugepages"),
          .free_1g = number_in(huge / "hugepages-1048576kB/free_hugepages")};
}

std::vector<NodeFiles> read_node_files(const fs::path& root) {
  std::vector<NodeFiles> nodes;
  const std::optional<std::vector<int>> online = parse_list(first_line(root / "sys/devices/system/node/online"));
  if (!online) return nodes;
  for (int id : *online) {
    const fs::path directory = node_directory(root, id);
    NodeFiles node;
    node.id = id;
    node.cpus = parse_list(first_line(directory / "cpulist")).value_or(std::vector<int>{});
    read_meminfo(directory / "meminfo", node);
    node.reserved = read_reserved_pages(directory);
    std::ifstream distances(directory / "distance");
    for (int distance = 0; distances >> distance;) node.distances.push_back(distance);
    nodes.push_back(std::move(node));
  }
  return nodes;
}

std::optional<std::vector<int>> read_allowed_nodes(const fs::path& root) {
  std::ifstream file(root / "proc/self/status");
  constexpr std::string_view kKey = "Mems_allowed_list:";
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(kKey)) continue;
    const size_t begin = line.find_first_not_of(" \t", kKey.size());
    if (begin == line.npos) return std::nullopt;
    return parse_list(std::string_view(line).substr(begin));
  }
  return std::nullopt;
}

std::string describe_missing_files(const fs::path& root) {
  const fs::path path = root / "sys/devices/system/cpu/online";
  errno = 0;
  const std::ifstream file(path);
  if (file.good()) return "";
  return format("/sys/devices/system/cpu cannot be read ({}), so it is not known which CPUs share a core or a memory",
                errno != 0 ? std::strerror(errno) : "no reason given");
}

}  // namespace cpuinfer::numa
