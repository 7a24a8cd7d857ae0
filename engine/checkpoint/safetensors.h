// The safetensors file format: checked reading, streaming writing.
// Specification: https://github.com/huggingface/safetensors (README, "Format").
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "engine/checkpoint/checkpoint_file.h"

namespace cpuinfer::checkpoint {

/// One tensor as the header declares it, after all checks.
struct SafetensorsEntry {
  std::string name;  ///< valid UTF-8, not empty, no control characters
  DType dtype = DType::kBF16;
  std::vector<int64_t> shape;  ///< row-major; at most 8 dimensions, each >= 0; empty for a scalar
  int64_t file_offset = 0;     ///< of the first byte, from the start of the file
  int64_t bytes = 0;           ///< == product(shape) * dtype_bytes(dtype)
};

/// The longest header that is read, as in the reference implementation.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;

/// Checks the first 8 bytes of a file of `file_bytes` bytes (a little-endian uint64) and returns the header length.
/// `prefix` holds min(8, file_bytes) bytes. `where` names the file in messages.
Result<int64_t> safetensors_header_length(std::span<const unsigned char> prefix, int64_t file_bytes,
                                          std::string_view where);

/// Parses the JSON header of a file of `file_bytes` bytes. Everything is checked: each entry's dtype, shape and
/// offsets, and that the tensors cover the data exactly, without overlap or hole. Returns entries by file offset.
/// Errors: kBadInput when malformed, kUnsupported for a dtype of the format that cpuinfer does not read.
Result<std::vector<SafetensorsEntry>> parse_safetensors_header(std::string_view header, int64_t file_bytes,
                                                               std::string_view where);

/// A checked, open file. Move-only. Const members are thread-safe.
/// Not mapped: when somebody shortens the file afterwards, reading is an error instead of a SIGBUS.
class SafetensorsFile {
 public:
  /// Reads the header only, no tensor bytes.
  /// Errors: kNotFound (missing, unreadable), kBadInput, kUnsupported (see parse_safetensors_header).
  static Result<SafetensorsFile> open(const std::filesystem::path& path);

  std::span<const SafetensorsEntry> entries() const { return entries_; }
  const std::filesystem::path& path() const { return file_.path(); }
  int descriptor() const { return file_.descriptor(); }
  int64_t file_bytes() const { return file_.bytes(); }
  /// Reads [file_offset, file_offset + out.size()). Errors: kRuntime (I/O, or the file has become shorter).
  Result<void> read(int64_t file_offset, std::span<std::byte> out) const {
    return file_.read(file_offset, static_cast<int64_t>(out.size()), reinterpret_cast<char*>(out.data()));
  }
  /// Drops the whole pages inside [file_offset, file_offset + bytes) from the page cache. The data stays readable.
  void drop_pages(int64_t file_offset, int64_t bytes) const;

 private:
  SafetensorsFile(InputFile file, std::vector<SafetensorsEntry> entries)
      : file_(std::move(file)), entries_(std::move(entries)) {}

  InputFile file_;
  std::vector<SafetensorsEntry> entries_;
};

/// One tensor to be written.
struct TensorSource {
  std::string name;
  DType dtype = DType::kBF16;
  std::vector<int64_t> shape;
  /// Fills `out` with the bytes [byte_offset, byte_offset + out.size()) of the tensor. Called with ascending offsets
  /// that cover the tensor once, in pieces of whole elements (the file is written as it is produced).
  std::function<void(int64_t byte_offset, std::span<std::byte> out)> fill;
};

/// A source that copies from memory. `bytes` must live until the file is written.
TensorSource tensor_from_bytes(std::string name, DType dtype, std::vector<int64_t> shape,
                               std::span<const std::byte> bytes);

/// Writes the tensors in the given order with `__metadata__` {"format": "pt"} (Transformers refuses files without).
/// The file appears under its name only when it is complete and on disk: temporary file, fsync, rename.
/// Errors: kUsage (doubled or unusable name, negative or too many dimensions, size overflow), kPermission, kRuntime
/// (disk full, I/O).
Result<void> write_safetensors(const std::filesystem::path& path, std::span<const TensorSource> tensors);

}  // namespace cpuinfer::checkpoint
