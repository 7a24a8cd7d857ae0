// Files that are read and written past the page cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <utility>

#include "base/result.h"

namespace cpuinfer::storage {

enum class FileAccess {
  kRead,       ///< of a file that is there
  kReadWrite,  ///< of a file that is there
  kCreate,     ///< of a new, empty file; an error if the name is taken
};

/// A regular file opened with O_DIRECT: no copy, and nothing else is pushed out of memory for it. Where the file system
/// refuses that (tmpfs did before Linux 6.6) it goes through the page cache and direct() says so. Move-only; closes on
/// destruction. Const members are thread-safe.
class DirectFile {
 public:
  /// Offsets, sizes and memory of every transfer are multiples of this; the disk's own blocks are no larger.
  static constexpr int64_t kAlignment = 4096;

  /// Errors: kNotFound (no such file or directory, unreadable), kPermission (to write), kBadInput (no regular file),
  /// kRuntime.
  static Result<DirectFile> open(const std::filesystem::path& path, FileAccess access);

  /// No file: descriptor() is -1.
  DirectFile() = default;
  DirectFile(DirectFile&& other) noexcept
      : path_(std::move(other.path_)),
        descriptor_(std::exchange(other.descriptor_, -1)),
        direct_(std::exchange(other.direct_, false)) {}
  DirectFile& operator=(DirectFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(descriptor_, other.descriptor_);
    std::swap(direct_, other.direct_);
    return *this;
  }
  ~DirectFile();

  const std::filesystem::path& path() const { return path_; }
  int descriptor() const { return descriptor_; }
  /// False: the page cache is in between.
  bool direct() const { return direct_; }

  /// Its length now. Errors: kRuntime.
  Result<int64_t> bytes() const;
  /// Reads or writes all of the bytes and waits for it. Errors: kRuntime with file and offset; end of file is one.
  Result<void> read(int64_t offset, std::span<std::byte> out) const;
  Result<void> write(int64_t offset, std::span<const std::byte> bytes) const;
  /// Makes the file `bytes` long, its space taken from the disk at once: what is written to it later fits.
  /// Errors: kRuntime (disk full, with the sizes).
  Result<void> reserve(int64_t bytes) const;
  /// Returns when all that was written would survive a power cut. Errors: kRuntime.
  Result<void> sync() const;

 private:
  DirectFile(std::filesystem::path path, int descriptor, bool direct)
      : path_(std::move(path)), descriptor_(descriptor), direct_(direct) {}

  std::filesystem::path path_;
  int descriptor_ = -1;
  bool direct_ = false;
};

}  // namespace cpuinfer::storage
