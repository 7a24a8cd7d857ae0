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
  int64_t data_limit = -1;           ///< RLIMIT_DATA in bytes; -1: unlimited
  int64_t data_used = 0;             ///< what counts against it: private memory that can be written, in bytes
  int64_t unfilled_bytes = 0;        ///< address space to be mapped and hardly filled: stacks of threads to come
};

/// The least of: MemAvailable; for the process's cgroup and every ancestor, limit (v2: memory.max, memory.high; v1:
/// memory.limit_in_bytes) minus usage, where page cache counts as free since the kernel drops it first; RLIMIT_AS minus
/// what is mapped; RLIMIT_DATA (since Linux 4.7 all private writable mappings) minus what is; where the kernel promises
/// no more than it has (vm.overcommit_memory 2), CommitLimit minus Committed_AS. The last three also minus
/// `unfilled_bytes`. Files that are missing set no limit. Never negative.
MemoryLimit available_memory(int64_t unfilled_bytes = 0);
MemoryLimit available_memory(const MemorySources& sources);

}  // namespace cpuinfer::numa
