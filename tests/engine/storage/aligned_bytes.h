// Memory for transfers past the page cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>

#include "engine/storage/direct_file.h"

namespace cpuinfer::storage {

struct FreeBytes {
  void operator()(std::byte* bytes) const { std::free(bytes); }
};

/// `bytes` bytes, a multiple of DirectFile::kAlignment, aligned to that.
class AlignedBytes {
 public:
  explicit AlignedBytes(int64_t bytes)
      : size_(static_cast<size_t>(bytes)),
        data_(static_cast<std::byte*>(std::aligned_alloc(DirectFile::kAlignment, size_))) {
    for (size_t i = 0; i < size_; ++i) data_.get()[i] = std::byte{0};
  }
  std::byte* data() const { return data_.get(); }
  int64_t size() const { return static_cast<int64_t>(size_); }
  std::span<std::byte> all() const { return {data_.get(), size_}; }

 private:
  size_t size_;
  std::unique_ptr<std::byte, FreeBytes> data_;
};

}  // namespace cpuinfer::storage
