// A Hugging Face model directory: config.json, generation_config.json and the weights, checked as one whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "base/types.h"
#include "engine/checkpoint/safetensors.h"

namespace cpuinfer::checkpoint {

/// A tensor of an open Checkpoint: a named, typed, bounds-checked byte range. Views the Checkpoint.
struct TensorRef {
  std::string name;
  DType dtype = DType::kBF16;
  std::vector<int64_t> shape;  ///< row-major, every dimension >= 0
  int64_t bytes = 0;
  int file = 0;             ///< index for Checkpoint::file_path
  int64_t file_offset = 0;  ///< of the first byte in that file
};

/// The file of a packed model directory (`cpuinfer pack`), which has it instead of safetensors; engine/load reads it.
inline constexpr const char* kPackedName = "weights.packed";

/// An open model directory. Move-only (TensorRefs stay valid when it is moved). Const members are thread-safe.
/// Invariant: index, shards and headers agree: every tensor exists exactly once, in the file the index names.
class Checkpoint {
 public:
  /// Reads the configs, the index and the header of every shard; no weight bytes.
  /// Weights: weights.packed, model.safetensors, or the shards of model.safetensors.index.json.
  /// Errors: kNotFound (missing or unreadable), kBadInput (malformed or contradictory), kUnsupported (other formats).
  static Result<Checkpoint> open(const std::filesystem::path& directory);

  Checkpoint(Checkpoint&&) noexcept = default;
  Checkpoint& operator=(Checkpoint&&) noexcept = default;

  const Json& config() const { return config_; }
  /// nullptr when the directory has no generation_config.json.
  const Json* generation_config() const { return generation_config_ ? &*generation_config_ : nullptr; }
  const std::filesystem::path& directory() const { return directory_; }
  /// True: the weights are in packed_path() and not looked at yet, and there are no tensors.
  bool is_packed() const { return packed_; }
  std::filesystem::path packed_path() const { return directory_ / kPackedName; }

  /// nullptr when there is no such tensor. O(log n).
  const TensorRef* find(std::string_view name) const;
  /// All tensors, by file and then by offset in it.
  std::span<const TensorRef> tensors() const { return tensors_; }
  /// Sum of all tensors' bytes; of a packed model, of its file.
  int64_t total_bytes() const { return total_bytes_; }

  int file_count() const { return static_cast<int>(files_.size()); }
  const std::filesystem::path& file_path(int file) const { return files_[static_cast<size_t>(file)].path(); }
  const SafetensorsFile& file(int file) const { return files_[static_cast<size_t>(file)]; }
  /// Reads the bytes [offset, offset + out.size()) of a tensor of this checkpoint. REQUIRES: they lie inside it.
  /// Errors: kRuntime (I/O, or the file has become shorter), with file, tensor and offset.
  Result<void> read(const TensorRef& tensor, int64_t offset, std::span<std::byte> out) const;

 private:
  Checkpoint() = default;

  std::filesystem::path directory_;
  Json config_;
  std::optional<Json> generation_config_;
  std::vector<SafetensorsFile> files_;
  std::vector<TensorRef> tensors_;
  std::vector<int> by_name_;  // indices into tensors_, sorted by name
  int64_t total_bytes_ = 0;
  bool packed_ = false;
};

}  // namespace cpuinfer::checkpoint
