// A file of packed weights: made once by `cpuinfer pack`, then read without repacking.
//
//   byte 0   "CPINFPKW"
//        8   kPackedLayoutVersion, uint32, little endian as all numbers
//       12   zero, uint32
//       16   bytes of the table, uint64
//       24   XXH3 (64 bits) of the table, uint64
//       32   the table: JSON with numerics_version, fingerprint (load::fingerprint_weights), bytes of the data, and the
//            parts: name, offset in the data, bytes, digest (the sum of load::piece_digest over its pieces), weights
//            [name, outputs, terms, segments]; a vector has no terms and no segments
//   then zeros up to a multiple of 4096, and the data: packed_layout.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/load/packed_layout.h"
#include "engine/model/model.h"
#include "engine/storage/digest.h"
#include "engine/storage/direct_file.h"

namespace cpuinfer::load {

/// Raised whenever the header or the order of bytes in the data changes.
inline constexpr uint32_t kPackedLayoutVersion = 1;

/// The header of a file with `layout`, whose parts have their digests. As long for any digests; a multiple of
/// kPackedAlignment.
std::vector<std::byte> packed_header(const PackedLayout& layout, storage::Digest128 fingerprint);

/// An open packed file whose header is whole and of this version. Move-only. Const members are thread-safe.
class PackedFile {
 public:
  /// Reads the header, no weights. `direct`: past the page cache, which is faster for a cold file and leaves the cache
  /// to others. Errors: of DirectFile::open; kBadInput (no packed file, damaged, truncated), kUnsupported (another
  /// version of the layout or of the numerics); what to do is `cpuinfer pack`.
  static Result<PackedFile> open(const std::filesystem::path& path, bool direct = true);

  /// Weights in the table.
  int64_t weight_count() const { return weight_count_; }
  /// Of the data.
  int64_t bytes() const { return bytes_; }
  storage::Digest128 fingerprint() const { return fingerprint_; }
  const storage::DirectFile& file() const { return file_; }
  const std::filesystem::path& path() const { return file_.path(); }
  /// Where the data begins in the file.
  int64_t data_offset() const { return data_offset_; }

  /// The layout of `model` with the digests of this file. Errors: kBadInput if the file is not of this model; names
  /// the weight, expected against found.
  Result<PackedLayout> layout_for(model::Model& model) const;

  /// kBadInput: a part whose bytes are not those that were written.
  std::unexpected<Error> damaged(const PackedPart& part, storage::Digest128 found) const;

 private:
  struct TableWeight {
    std::string name;
    int64_t outputs = 0, terms = 0, segments = 0;
  };
  struct TablePart {
    std::string name;
    int64_t offset = 0, bytes = 0;
    storage::Digest128 digest;
    std::vector<TableWeight> weights;
  };
  explicit PackedFile(storage::DirectFile file) : file_(std::move(file)) {}
  Result<void> read_header();
  Result<void> parse_table(const std::string& text);

  storage::DirectFile file_;
  int64_t data_offset_ = 0, bytes_ = 0, weight_count_ = 0;
  storage::Digest128 fingerprint_;
  std::vector<TablePart> parts_;
};

}  // namespace cpuinfer::load
