// Files of a checkpoint as untrusted bytes: opened without surprises, read in parts, or whole up to a limit. And small
// files, written whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"

namespace cpuinfer::checkpoint {

/// A regular file open for reading. Move-only; closes on destruction. Const members are thread-safe (pread).
class InputFile {
 public:
  /// Errors: kNotFound when the file is missing or unreadable, kBadInput when it is not a regular file
  /// (a pipe or a device would block or never end).
  static Result<InputFile> open(const std::filesystem::path& path);
  InputFile(InputFile&& other) noexcept
      : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), bytes_(other.bytes_) {}
  InputFile& operator=(InputFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(descriptor_, other.descriptor_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~InputFile();

  const std::filesystem::path& path() const { return path_; }
  int descriptor() const { return descriptor_; }
  /// Size when opened.
  int64_t bytes() const { return bytes_; }
  /// Reads exactly [offset, offset + bytes) into `out`. Errors: kRuntime (I/O, or the file has become shorter), with
  /// the place in the file.
  Result<void> read(int64_t offset, int64_t bytes, char* out) const;

 private:
  InputFile(std::filesystem::path path, int descriptor, int64_t bytes)
      : path_(std::move(path)), descriptor_(descriptor), bytes_(bytes) {}

  std::filesystem::path path_;
  int descriptor_ = -1;
  int64_t bytes_ = 0;
};

/// The whole file, which may not be larger than `max_bytes` (kBadInput names both sizes).
Result<std::string> read_whole_file(const std::filesystem::path& path, int64_t max_bytes);

/// The file appears, or replaces one of its name, when it is complete (temporary file beside it, rename); what is no
/// regular file, such as a pipe, is written to. Errors: kNotFound (no such directory), kPermission, kRuntime.
Result<void> write_whole_file(const std::filesystem::path& path, std::string_view text);

}  // namespace cpuinfer::checkpoint
