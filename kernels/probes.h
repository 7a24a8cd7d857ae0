// Loops that measure what a core can do: arithmetic peaks and memory reads, the denominators of every benchmark. Each
// is one thread's work, noexcept and without allocation, like the kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/isa.h"

namespace cpuinfer::kernels {

/// A loop of one kind of multiply-add on registers alone, with as many independent sums as hide its latency.
struct PeakProbe {
  const char* name;  ///< "fp32 FMA (avx512)"
  Isa needs;
  int64_t flops_per_iteration;  ///< multiplications and additions count one each
  /// Returns a finite number that depends on every sum, so that no work can be left out.
  float (*run)(int64_t iterations) noexcept;
};
/// All of them, widest first.
std::span<const PeakProbe> peak_probes();

/// How memory is walked. It is cut into blocks of `streams` contiguous streams of stream_bytes each; the streams of a
/// block are read in turn, one cache line each, then comes the next block. Many weights at once are blocks of units:
/// stream_bytes = 64 KiB is a unit of 2048 terms.
struct ReadPattern {
  int streams = 1;             ///< 1, 2, 4 or 8
  int64_t stream_bytes = 0;    ///< multiple of 512
  int64_t prefetch_bytes = 0;  ///< how far ahead of each load its stream is prefetched into L1 (T0), past the end of
                               ///< a stream into the stream's next block; multiple of 512, at most stream_bytes;
                               ///< 0: not at all
  friend bool operator==(const ReadPattern&, const ReadPattern&) = default;
};

/// A loop that loads every byte once.
struct ReadProbe {
  const char* name;  ///< "avx512"
  Isa needs;
  /// data: 64-byte aligned; bytes: multiple of streams * stream_bytes. Returns the exclusive or of all 64-bit words:
  /// the same for every probe and pattern.
  uint64_t (*run)(const std::byte* data, int64_t bytes, const ReadPattern& pattern) noexcept;
};
/// All of them, widest first. The last one needs no more than cpuinfer does.
std::span<const ReadProbe> read_probes();

}  // namespace cpuinfer::kernels
