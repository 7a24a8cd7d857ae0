// Reads the weights of a checkpoint once, at the speed of the disk.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "engine/checkpoint/checkpoint.h"

namespace cpuinfer::checkpoint {

/// What reading leaves in the page cache.
enum class PageCache {
  kFill,   ///< all that was read, for the next start
  kSpare,  ///< what was there before: the memory is needed for other things
};

/// Reads large parts of the tensors of a checkpoint. What the page cache has is copied from there. The rest, with
/// PageCache::kSpare, comes straight from the disk (O_DIRECT): no copy, and no page is taken for it. Where a file
/// system cannot do that the rest goes through the page cache and is dropped from it. Views the checkpoint; read() is
/// thread-safe.
class TensorReader {
 public:
  /// Of buffers; also the slack that a part needs at either end.
  static constexpr int64_t kAlignment = 4096;
  /// Bytes of buffer for a part of `bytes` bytes, wherever in the file it begins.
  static constexpr int64_t buffer_bytes(int64_t bytes) { return round_up(bytes, kAlignment) + kAlignment; }

  TensorReader(const Checkpoint& checkpoint, PageCache page_cache);
  TensorReader(const TensorReader&) = delete;
  TensorReader& operator=(const TensorReader&) = delete;
  ~TensorReader();

  /// Reads the bytes [offset, offset + bytes) of a tensor into `buffer` and returns where in it they begin.
  /// buffer: buffer_bytes(bytes) long, aligned to kAlignment, best in huge pages. REQUIRES: the bytes lie in the
  /// tensor. Errors: kRuntime (I/O, or the file has become shorter), with file, tensor and offset.
  Result<const std::byte*> read(const TensorRef& tensor, int64_t offset, int64_t bytes, std::byte* buffer) const;

  /// Bytes that came straight from the disk so far.
  int64_t direct_bytes() const { return direct_bytes_.load(std::memory_order_relaxed); }

 private:
  struct File {
    int direct = -1;          // descriptor with O_DIRECT, or -1
    void* mapping = nullptr;  // only to ask which pages are in memory: never read
    size_t mapping_bytes = 0;
  };
  bool cached(const File& file, int64_t begin, int64_t end) const;
  bool read_direct(const File& file, int64_t begin, int64_t end, std::byte* buffer) const;

  const Checkpoint& checkpoint_;
  PageCache page_cache_;
  std::vector<File> files_;
  mutable std::atomic<int64_t> direct_bytes_ = 0;
};

}  // namespace cpuinfer::checkpoint
