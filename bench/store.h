// What a KV store gains: time to the first token after a prefix that was computed, read from disk, or kept in memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "bench/disk.h"
#include "bench/read.h"
#include "engine/run/engine.h"

namespace cpuinfer::bench {

/// One prefix. Seconds from the request to the logits of the token after it.
struct StoreCase {
  int64_t prefix_tokens = 0;
  double cold_seconds = 0;    ///< computed, and written to the store meanwhile
  double flush_seconds = 0;   ///< until the last of it was on the disk, after that
  double stored_seconds = 0;  ///< read from the store by a new sequence
  double memory_seconds = 0;  ///< by the sequence that has it
  int64_t bytes = 0;          ///< of its pages on disk
  double read_bandwidth = 0;  ///< bytes per second while the pages were read
  bool same_bits = false;     ///< the logits of all three are equal
};

struct StoreFigures {
  std::string model;
  std::string directory;
  DiskFigure disk;  ///< sequential reading, in the same directory
  std::vector<StoreCase> cases;
  double write_bandwidth = 0;  ///< bytes per second while pages were being written, all cases
};

struct StoreBenchOptions {
  std::vector<int64_t> prefixes;  ///< tokens, each at least 1
  double disk_seconds = 2;        ///< of reading for the disk's figure
};

/// REQUIRES: the engine is loaded with a KV store that has nothing of these prefixes; each of them and 1 token more
/// fits its context. Errors: of append and reuse, of measure_disk, kInterrupted, kRuntime if the store did not keep a
/// prefix.
Result<StoreFigures> measure_store(run::Engine& engine, const StoreBenchOptions& options, const Watch& watch = {});

/// The table for people. Ends with a newline.
std::string store_text(const StoreFigures& figures);
Json store_json(const StoreFigures& figures);

}  // namespace cpuinfer::bench
