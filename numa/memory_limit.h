// How much memory this process may still take, and what says so.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace cpuinfer::numa {

struct MemoryLimit {
  int64_t bytes = 0;   ///< what can still be taken without swapping or being killed
  std::string reason;  ///< one sentence that names the limit that binds, with its numbers
};

/// Where the limits are read from; the defaults are this process.
struct MemorySources {
  std::filesystem::path root = "/";  ///< /proc and /sys are looked up below it
  int64_t address_space_limit = -1;  ///< RLIMIT_AS in bytes; -1: unlimited
  int64_t address_space_used = 0;    ///< virtual size of this process in bytes
};

/// The least of: MemAvailable; for the process's cgroup and every ancestor, limit (v2: memory.max, memory.high; v1:
/// memory.limit_in_bytes) minus usage, where page cache counts as free since the kernel drops it first; RLIMIT_AS minus
/// what is mapped. Files that are missing set no limit. Never negative.
MemoryLimit available_memory();
MemoryLimit available_memory(const MemorySources& sources);

}  // namespace cpuinfer::numa
