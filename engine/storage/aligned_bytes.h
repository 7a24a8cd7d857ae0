// Memory for transfers past the page cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <span>

#include "base/types.h"
#include "engine/storage/direct_file.h"

namespace cpuinfer::storage {

/// Zeroed bytes, aligned to DirectFile::kAlignment; what is asked for is rounded up to a multiple of that. Move-only.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  /// Throws std::bad_alloc.
  explicit AlignedBytes(int64_t bytes)
      : size_(round_up(bytes, DirectFile::kAlignment)),
        data_(static_cast<std::byte*>(std::aligned_alloc(DirectFile::kAlignment, static_cast<size_t>(size_)))) {
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_.get(), 0, static_cast<size_t>(size_));
  }
  std::byte* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  std::span<std::byte> all() const { return {data_.get(), static_cast<size_t>(size_)}; }

 private:
  struct Free {
    void operator()(std::byte* bytes) const { std::free(bytes); }
  };
  int64_t size_ = 0;
  std::unique_ptr<std::byte, Free> data_;
};

}  // namespace cpuinfer::storage
