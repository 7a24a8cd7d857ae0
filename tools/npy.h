// NumPy's file format, version 1.0, for one float32 matrix that is written row by row.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "base/result.h"

namespace cpuinfer::tools {

/// Writes [rows, columns] float32, row-major. The file appears under its name only when it is complete and on disk:
/// temporary file beside it, fsync, rename. Without finish() nothing remains. Move-only.
class NpyWriter {
 public:
  static Result<NpyWriter> create(const std::filesystem::path& path, int64_t rows, int64_t columns);
  NpyWriter(NpyWriter&& other) noexcept;
  NpyWriter& operator=(NpyWriter&&) = delete;
  ~NpyWriter();

  /// Appends whole rows. Errors: kRuntime (disk full, I/O) with the path.
  Result<void> append(std::span<const float> values);
  /// REQUIRES: all rows were appended.
  Result<void> finish();

 private:
  NpyWriter(std::filesystem::path path, std::filesystem::path temporary, int descriptor, int64_t bytes)
      : path_(std::move(path)), temporary_(std::move(temporary)), descriptor_(descriptor), bytes_left_(bytes) {}
  Result<void> write(const void* data, size_t bytes);

  std::filesystem::path path_, temporary_;
  int descriptor_;
  int64_t bytes_left_;  // of the matrix
};

}  // namespace cpuinfer::tools
