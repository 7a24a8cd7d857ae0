// Control groups, for reference. /proc/self/cgroup says which group, one line per hierarchy:
//   0::/user.slice/a          v2         5:memory:/docker/f00     v1, the hierarchy of the memory controller
// /proc/self/mountinfo says where hierarchies are mounted and which of their directories is the mount's root:
//   31 23 0:26 /docker/f00 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
// The group's directory is the mount point plus the group's path without the root. Limits of every directory from
// there up to the mount point hold.
#include "numa/memory_limit.h"

#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>
#include <vector>

#include "base/format.h"
#include "base/types.h"

namespace cpuinfer::numa {
namespace {

namespace fs = std::filesystem;

// v1 says "no limit" with the largest multiple of a page, v2 with "max".
constexpr int64_t kNoLimit = int64_t{1} << 60;

/// The number in a one-line file; nothing if it is missing, not a number ("max") or no limit.
std::optional<int64_t> number_in(const fs::path& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (!(file >> value) || value < 0 || value >= kNoLimit) return std::nullopt;
  return value;
}

/// The value after `key` in a file of "key value" lines; 0 if it is not there.
int64_t value_of(const fs::path& path, std::string_view key) {
  std::ifstream file(path);
  std::string name;
  int64_t value = 0;
  while (file >> name >> value)
    if (name == key) return value;
  return 0;
}

/// The bytes after `key` in a file of "key:  value kB" lines; nothing if it is not there.
std::optional<int64_t> bytes_of(const fs::path& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    int64_t kib = 0;
    if (words >> name >> kib && name == key) return kib * 1024;
  }
  return std::nullopt;
}

/// One memory hierarchy as it is mounted.
struct Hierarchy {
  bool v2 = false;
  std::string mount_root;
  std::string mount_point;
};

bool lists_memory(std::string_view comma_separated) {
  for (size_t begin = 0; begin <= comma_separated.size();) {
    const size_t end = std::min(comma_separated.find(',', begin), comma_separated.size());
    if (comma_separated.substr(begin, end - begin) == "memory") return true;
    begin = end + 1;
  }
  return false;
}

std::vector<Hierarchy> mounted_hierarchies(const fs::path& root) {
  std::vector<Hierarchy> found;
  std::ifstream file(root / "proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string skip, mount_root, mount_point, word, type, source, options;
    if (!(words >> skip >> skip >> skip >> mount_root >> mount_point)) continue;
    while (words >> word && word != "-") {
    }
    if (!(words >> type >> source >> options)) continue;
    if (type == "cgroup2") found.push_back({true, mount_root, mount_point});
    if (type == "cgroup" && lists_memory(options)) found.push_back({false, mount_root, mount_point});
  }
  return found;
}

/// The process's path in the hierarchy, "" if it is in none.
std::string group_path(const fs::path& root, bool v2) {
  std::ifstream file(root / "proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = first == line.npos ? line.npos : line.find(':', first + 1);
    if (second == line.npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (v2 ? controllers.empty() : lists_memory(controllers)) return line.substr(second + 1);
  }
  return "";
}

void take_least(MemoryLimit& least, int64_t bytes, std::string reason) {
  bytes = std::max<int64_t>(bytes, 0);
  if (!least.reason.empty() && bytes >= least.bytes) return;
  least = {bytes, std::move(reason)};
}

/// One limit file of one directory.
void look_at_limit(MemoryLimit& least, const fs::path& directory, const std::string& shown, const char* limit_file,
                   const char* usage_file, const char* stat_prefix) {
  const std::optional<int64_t> limit = number_in(directory / limit_file);
  const std::optional<int64_t> usage = number_in(directory / usage_file);
  if (!limit || !usage) return;
  const fs::path stat = directory / "memory.stat";
  const int64_t cache =
      value_of(stat, format("{}inactive_file", stat_prefix)) + value_of(stat, format("{}active_file", stat_prefix));
  const int64_t used = std::max<int64_t>(*usage - cache, 0);
  take_least(least, *limit - used,
             format("control group {} allows {} ({}) and {} are used", shown, format_bytes(*limit), limit_file,
                    format_bytes(used)));
}

void look_at_hierarchy(MemoryLimit& least, const fs::path& root, const Hierarchy& hierarchy) {
  const std::string path = group_path(root, hierarchy.v2);
  if (path.empty()) return;
  // In a container the path may be outside of what is mounted ("/../.."): then the mount point is all there is to see.
  std::string below = path;
  if (hierarchy.mount_root != "/") {
    const std::string prefix = hierarchy.mount_root;
    const bool inside = below == prefix || below.starts_with(prefix + "/");
    below = inside ? below.substr(prefix.size()) : "";
  }
  const fs::path top = root / fs::path(hierarchy.mount_point).relative_path();
  fs::path group = (top / fs::path(below).relative_path()).lexically_normal();
  const fs::path normal_top = top.lexically_normal();
  const auto inside_top = [&](const fs::path& directory) {
    return std::mismatch(normal_top.begin(), normal_top.end(), directory.begin(), directory.end()).first ==
           normal_top.end();
  };
  if (!group.has_filename()) group = group.parent_path();
  if (!inside_top(group)) group = normal_top;
  for (;; group = group.parent_path()) {
    const std::string shown = format("/{}", group.lexically_relative(root).string());
    if (hierarchy.v2) {
      look_at_limit(least, group, shown, "memory.max", "memory.current", "");
      look_at_limit(least, group, shown, "memory.high", "memory.current", "");
    } else {
      look_at_limit(least, group, shown, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_");
    }
    if (group == normal_top || !group.has_relative_path()) break;
  }
}

}  // namespace

MemoryLimit available_memory(const MemorySources& sources) {
  MemoryLimit least;
  const fs::path meminfo = sources.root / "proc/meminfo";
  if (const auto available = bytes_of(meminfo, "MemAvailable:"))
    take_least(least, *available, format("the machine has {} available (MemAvailable)", format_bytes(*available)));
  for (const Hierarchy& hierarchy : mounted_hierarchies(sources.root))
    look_at_hierarchy(least, sources.root, hierarchy);
  // Of the next three every mapping counts as a whole, filled or not.
  const auto take_mappable = [&](int64_t limit, int64_t used, std::string reason) {
    if (sources.unfilled_bytes > 0)
      reason += format("; stacks of threads take {} more", format_bytes(sources.unfilled_bytes));
    take_least(least, limit - used - sources.unfilled_bytes, std::move(reason));
  };
  if (sources.address_space_limit >= 0)
    take_mappable(sources.address_space_limit, sources.address_space_used,
                  format("`ulimit -v` allows {} of address space and {} are mapped",
                         format_bytes(sources.address_space_limit), format_bytes(sources.address_space_used)));
  if (sources.data_limit >= 0)
    take_mappable(sources.data_limit, sources.data_used,
                  format("`ulimit -d` allows {} of private memory and {} are mapped", format_bytes(sources.data_limit),
                         format_bytes(sources.data_used)));
  if (number_in(sources.root / "proc/sys/vm/overcommit_memory") == 2) {
    const auto limit = bytes_of(meminfo, "CommitLimit:"), used = bytes_of(meminfo, "Committed_AS:");
    if (limit && used)
      take_mappable(*limit, *used,
                    format("vm.overcommit_memory is 2: the machine promises {} (CommitLimit) and has promised {}",
                           format_bytes(*limit), format_bytes(*used)));
  }
  if (least.reason.empty()) least = {0, "the system does not say how much memory is available (/proc/meminfo)"};
  return least;
}

MemoryLimit available_memory(int64_t unfilled_bytes) {
  MemorySources sources;
  sources.unfilled_bytes = unfilled_bytes;
  const auto limit_of = [](auto resource) -> int64_t {
    rlimit limit{};
    if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return -1;
    return static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, INT64_MAX));
  };
  sources.address_space_limit = limit_of(RLIMIT_AS);
  sources.address_space_used = bytes_of("/proc/self/status", "VmSize:").value_or(0);
  sources.data_limit = limit_of(RLIMIT_DATA);
  sources.data_used = bytes_of("/proc/self/status", "VmData:").value_or(0);
  return available_memory(sources);
}

}  // namespace cpuinfer::numa
