// How fast a checkpoint gets from the disk to its nodes, beside how fast the disk is read.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "bench/disk.h"
#include "engine/load/loader.h"
#include "numa/team.h"
#include "numa/topology.h"

namespace cpuinfer::bench {

struct LoadBenchOptions {
  std::filesystem::path model;
  int64_t memory_limit_bytes = 0;  ///< 0: what the system has
  int repeats = 3;                 ///< beside the first load, whose memory is new
  /// Loads from the page cache instead of the disk, which is not measured then.
  bool warm = false;
  double disk_seconds = 2;  ///< of reading, each time that the disk is measured
};

struct LoadFigures {
  std::string model;
  int files = 0, workers = 0, nodes = 0;
  int64_t file_bytes = 0, packed_bytes = 0;
  bool packed = false;  ///< the model is packed already: what is called packing is checking
  bool warm = false;
  double still_cached = 0;        ///< part of the files that could not be dropped from the page cache
  std::vector<DiskFigure> disks;  ///< before each load and after the last; empty: not measured, see disk_note
  std::string disk_note;          ///< why the disk was not measured
  /// The first allocates its memory, as a start of cpuinfer does: a virtual machine may have to ask its host for it.
  /// The others load into the same memory again.
  std::vector<load::LoadStatistics> loads;
  int64_t peak_extra_bytes = -1;  ///< taken beside the packed weights at most; -1: the kernel does not say

  /// Of load `i`, in bytes per second.
  double rate(size_t i) const { return static_cast<double>(loads[i].bytes) / loads[i].seconds; }
  /// The disk's, from before and after load `i`. REQUIRES: it was measured.
  double disk_rate(size_t i) const {
    return (disks[i].winner().bytes_per_second + disks[i + 1].winner().bytes_per_second) / 2;
  }
  /// The median over the repeats of rate / disk_rate. REQUIRES: the disk was measured, there are repeats.
  double share_of_disk() const;
};

/// Told what is done and how much of it; stops with kInterrupted once *cancel is true.
struct LoadBenchWatch {
  const std::atomic<bool>* cancel = nullptr;
  std::function<void(const char* what, int64_t done, int64_t total)> progress;
};

/// Loads the model again and again, and measures the disk in between. Holds the packed weights; not a KV cache.
/// Errors: of Checkpoint::open, parse_model_config, check_tensors, measure_disk and load_weights; kDoesNotFit with the
/// plan's table.
Result<LoadFigures> measure_load(numa::Team& team, const numa::Topology& topology, const LoadBenchOptions& options,
                                 const LoadBenchWatch& watch = {});

/// The table for people. Ends with a newline.
std::string load_text(const LoadFigures& figures);
Json load_json(const LoadFigures& figures);

}  // namespace cpuinfer::bench
