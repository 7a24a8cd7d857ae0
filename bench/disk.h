// How fast the disk under a directory is read from beginning to end: what loading a model can be measured against.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/result.h"
#include "bench/read.h"
#include "numa/topology.h"

namespace cpuinfer::bench {

struct DiskOptions {
  /// A directory whose *.safetensors files or weights.packed are read. Empty: a temporary file is made in `directory`,
  /// and read; it has no name from the start, so that nothing can leave it behind.
  std::filesystem::path model;
  std::filesystem::path directory;
  int64_t temporary_bytes = 1 << 30;      ///< size of the temporary file; less if writing it takes over two seconds
  double seconds = 4;                     ///< of reading, for all entries together
  int64_t most_bytes = int64_t{4} << 30;  ///< read in all
};

/// Readers at once, each with blocks of this size; all read one sequence of blocks in turn.
struct DiskEntry {
  int readers = 1;
  int64_t block_bytes = 0;
  double bytes_per_second = 0;
};

struct DiskFigure {
  std::string what;    ///< "3 files of models/x (11.2 GiB)", "a temporary file in /var/tmp (1.0 GiB)"
  std::string cache;   ///< how the page cache was kept out: "O_DIRECT", or why not and what was done instead
  bool direct = true;  ///< false: figures may be those of a cache
  std::vector<DiskEntry> entries;
  size_t best = 0;
  const DiskEntry& winner() const { return entries[best]; }
};

/// Blocks of {1, 4, 8} MiB by {1, 2, 4, 8} readers; which may be more than there are CPUs. Consecutive entries read
/// on where the last one ended.
/// Errors: kNotFound (no such directory, no safetensors files), kPermission, kRuntime (read errors, disk full),
/// kInterrupted.
Result<DiskFigure> measure_disk(const numa::Topology& topology, const DiskOptions& options, const Watch& watch = {});

}  // namespace cpuinfer::bench
