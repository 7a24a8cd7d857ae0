// Read bandwidth of memory: which way of reading is fastest here (sweep), and what it gives right now (sample).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "kernels/probes.h"
#include "numa/memory.h"
#include "numa/team.h"

namespace cpuinfer::bench {

/// A contiguous piece of memory: 64-byte aligned.
struct ReadSpan {
  const std::byte* data = nullptr;
  int64_t bytes = 0;
};

/// What a team reads: per worker (by rank) the pieces that lie on its node, in the order in which it reads them. They
/// should exceed the last-level cache many times.
struct ReadMemory {
  std::string pages;  ///< what it lies in: "4 KiB", "2 MiB", "weights"
  std::vector<std::vector<ReadSpan>> workers;
};

/// One way of reading.
struct ReadConfig {
  const kernels::ReadProbe* probe = nullptr;
  kernels::ReadPattern pattern;
};

/// Bytes per second of all workers reading at once: each worker's bytes by its own time, added up.
struct ReadRate {
  double all = 0;
  std::vector<double> nodes;  ///< of the workers of each node
};

/// Reads the same memory again and again, each time for a moment, going on where the last time ended: so that small
/// moments too read from memory and not from a cache. `memory` must outlive it. Used by the thread that owns the team.
class ReadSampler {
 public:
  /// `memory` has a list for each worker of `team`, with at least min_bytes() in one piece of each.
  ReadSampler(numa::Team& team, const ReadMemory& memory);

  /// All workers read for about `seconds`, after a barrier. What is left over at the end of a piece when the pattern
  /// does not divide it is not read.
  ReadRate sample(const ReadConfig& config, double seconds);

  /// The smallest piece that a pattern can read.
  static int64_t min_bytes(const kernels::ReadPattern& pattern) { return pattern.streams * pattern.stream_bytes; }

 private:
  /// Where a worker goes on. On its own cache line.
  struct alignas(64) Cursor {
    size_t piece = 0;
    int64_t offset = 0;
    int64_t bytes = 0;    // read in this sample
    double seconds = 0;   // of this sample
    uint64_t folded = 0;  // what was read, so that it is
  };
  void read_some(Cursor& cursor, std::span<const ReadSpan> pieces, const ReadConfig& config);

  numa::Team& team_;
  const ReadMemory& memory_;
  std::vector<Cursor> cursors_;
  std::vector<int> node_of_;
  int64_t largest_block_ = 0;  // what every worker has in one piece
};

/// One row of a sweep.
struct ReadEntry {
  size_t memory = 0;  ///< which of those given
  ReadConfig config;
  ReadRate rate;  ///< medians of the samples
  int samples = 0;
};

struct ReadSweep {
  std::vector<ReadEntry> entries;
  size_t best = 0;  ///< the entry with the highest rate of all workers
  const ReadEntry& winner() const { return entries[best]; }
};

/// How long a sweep takes. Every entry gets `coarse_samples`, interleaved so that a disturbance hits all alike; then
/// the best entry is sampled again, for longer, until the one on top has `fine_samples` of these: a lucky sample does
/// not win.
struct SweepEffort {
  double coarse_seconds = 0.008;
  int coarse_samples = 3;
  double fine_seconds = 0.05;
  int fine_samples = 7;
  bool quick = false;  ///< fewer patterns
};
SweepEffort quick_effort();

/// Told of progress (0 .. 1); a measurement stops with kInterrupted once *cancel is true.
struct Watch {
  const std::atomic<bool>* cancel = nullptr;
  std::function<void(double done)> progress = {};
  bool cancelled() const { return cancel != nullptr && cancel->load(std::memory_order_relaxed); }
  Result<void> check(double done) const;
};

/// Sweeps {memories} x {probes within `isa`} x {streams 1, 2, 4, 8} x {64 KiB, 1 MiB streams} x {prefetch distances}.
/// Patterns that are larger than the smallest piece of a memory are left out.
/// REQUIRES: `isa` has AVX2; each worker of each memory has a piece of at least 64 KiB. Errors: kInterrupted.
Result<ReadSweep> sweep_read(numa::Team& team, std::span<const ReadMemory> memories, kernels::Isa isa,
                             const SweepEffort& effort, const Watch& watch = {});

/// Memory to sweep: `bytes_per_node` on each node of the team, written by the workers that read it.
struct ReadBuffers {
  std::vector<numa::NodeBuffer> buffers;  ///< per node
  ReadMemory memory;                      ///< each worker its share
  double huge_share = 0;                  ///< part of it that the kernel put into huge pages; -1: it does not say
};
/// Errors: of NodeBuffer::allocate.
Result<ReadBuffers> make_read_buffers(numa::Team& team, const numa::Topology& topology, int64_t bytes_per_node,
                                      numa::Pages pages);

}  // namespace cpuinfer::bench
