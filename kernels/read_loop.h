// The walk of a ReadProbe as a template over the vector, which loads a cache line, folds lines and takes their
// exclusive or at the end.
//
// The anonymous namespace is on purpose: the files that include this are compiled for different instruction sets, and
// the linker must never take code of one for the other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/probes.h"

namespace cpuinfer::kernels {
namespace {

constexpr int64_t kLineBytes = 64;
// Lines read between two looks at the loop's counter, in all streams together; a stream is a multiple of these.
constexpr int kLinesPerTurn = 8;

/// Reads [begin, end) of each stream. Prefetches `ahead` bytes after each line; the address may be nowhere.
template <typename Vector, int kStreams, bool kPrefetch>
[[gnu::always_inline]] inline void read_stretch(const std::byte* block, int64_t stream_bytes, int64_t begin,
                                                int64_t end, int64_t ahead, Vector& vector) {
  constexpr int kLines = kLinesPerTurn / kStreams;
  for (int64_t at = begin; at < end; at += kLines * kLineBytes) {
#pragma GCC unroll 8
    for (int line = 0; line < kLines; ++line) {
#pragma GCC unroll 8
      for (int s = 0; s < kStreams; ++s) {
        const std::byte* here = block + s * stream_bytes + at + line * kLineBytes;
        if constexpr (kPrefetch)
          __builtin_prefetch(
              reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(here) + static_cast<uintptr_t>(ahead)));
        vector.template fold<kStreams>(line, s, here);
      }
    }
  }
}

template <typename Vector, int kStreams>
inline uint64_t read_streams(const std::byte* data, int64_t bytes, const ReadPattern& pattern) {
  Vector vector;
  const int64_t stream = pattern.stream_bytes;
  const int64_t block_bytes = kStreams * stream;
  // What lies behind a stream is its neighbour's, already read: the last prefetches go to the next block.
  const int64_t ahead = pattern.prefetch_bytes;
  const int64_t ahead_next = ahead + block_bytes - stream;
  for (int64_t block = 0; block < bytes; block += block_bytes) {
    if (ahead == 0) {
      read_stretch<Vector, kStreams, false>(data + block, stream, 0, stream, 0, vector);
    } else {
      read_stretch<Vector, kStreams, true>(data + block, stream, 0, stream - ahead, ahead, vector);
      read_stretch<Vector, kStreams, true>(data + block, stream, stream - ahead, stream, ahead_next, vector);
    }
  }
  return vector.result();
}

template <typename Vector>
inline uint64_t read_pattern(const std::byte* data, int64_t bytes, const ReadPattern& pattern) {
  switch (pattern.streams) {
    case 2: return read_streams<Vector, 2>(data, bytes, pattern);
    case 4: return read_streams<Vector, 4>(data, bytes, pattern);
    case 8: return read_streams<Vector, 8>(data, bytes, pattern);
    default: return read_streams<Vector, 1>(data, bytes, pattern);
  }
}

}  // namespace
}  // namespace cpuinfer::kernels
