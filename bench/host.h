// What bounds every model on a machine, measured in one go.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "bench/barriers.h"
#include "bench/disk.h"
#include "bench/peaks.h"
#include "bench/read.h"
#include "numa/team.h"
#include "numa/topology.h"

namespace cpuinfer::bench {

enum class Effort {
  kFull,   ///< all patterns, both kinds of pages, the disk: under 20 s
  kShort,  ///< a second: the figures are within some percent of kFull's
  kQuick,  ///< as kShort in what fits into a cache: shows that it works, not how fast
};

struct HostOptions {
  Effort effort = Effort::kFull;
  int64_t buffer_bytes = 0;              ///< read per node and kind of pages; 0: 1 GiB, or less where memory is short
  std::filesystem::path model;           ///< see DiskOptions
  std::filesystem::path disk_directory;  ///< empty, and no model: the disk is not measured
};

/// The memory of a sweep.
struct HostMemory {
  std::string pages;      ///< "4 KiB", "2 MiB"
  double huge_share = 0;  ///< part that really lies in huge pages; -1: the kernel does not say
};

struct HostFigures {
  std::string cpu;
  int workers = 0;
  int nodes = 0;
  kernels::Isa isa = kernels::Isa::kNone;
  int64_t buffer_bytes = 0;          ///< per node and kind of pages
  std::vector<HostMemory> memories;  ///< that ReadEntry::memory counts
  ReadSweep read;
  std::vector<PeakFigure> peaks;
  std::vector<BarrierFigure> barriers;
  std::optional<DiskFigure> disk;
};

/// Told what is measured and how much of that is done (0 .. 1); stops with kInterrupted once *cancel is true.
struct HostWatch {
  const std::atomic<bool>* cancel = nullptr;
  std::function<void(const char* what, double done)> progress;
};

/// Measures on `team`. Errors: kUnsupported (`isa` lacks AVX2), kUsage (a buffer too small to be read by all workers),
/// kDoesNotFit (buffers that memory has no room for), of measure_disk, kInterrupted.
Result<HostFigures> measure_host(numa::Team& team, const numa::Topology& topology, kernels::Isa isa,
                                 const HostOptions& options, const HostWatch& watch = {});

}  // namespace cpuinfer::bench
