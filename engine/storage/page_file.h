// A page of keys and values as a file of its own, written so that it is there whole or not at all.
//
//   bytes 0 ..     header, a whole number of blocks of DirectFile::kAlignment: the fields of Header in page_file.cc,
//   the token ids as
//                  int32, one XXH3-64 for each layer
//   then           the payload: for each layer its pieces, one after the other (KvCache: a piece is the keys and then
//                  the values of one kv head)
//
// Numbers are little-endian, as on every machine that runs this. A file appears under its name only after its bytes are
// on the disk, so what a killed process leaves is a temporary file, which the next one removes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "engine/storage/direct_file.h"
#include "engine/storage/page_key.h"

namespace cpuinfer::storage {

/// Version of the file and of the layout of its payload (docs/memory.md). Part of every key, so that other versions are
/// never found.
inline constexpr int kPageLayoutVersion = 1;

/// How the payload of all pages of a model is cut.
struct PageShape {
  int layers = 0;
  int pieces = 0;           ///< of a layer: one for each kv head
  int64_t piece_bytes = 0;  ///< a multiple of DirectFile::kAlignment
  int page_tokens = 0;      ///< the most tokens of a page

  int64_t layer_bytes() const { return pieces * piece_bytes; }
  int64_t payload_bytes() const { return layers * layer_bytes(); }
  int64_t header_bytes() const;
  int64_t file_bytes() const { return header_bytes() + payload_bytes(); }
  friend bool operator==(const PageShape&, const PageShape&) = default;
};

/// What a page is, and where its payload lies in memory.
struct PageContent {
  PageKey key;
  std::vector<TokenId> tokens;     ///< 1 to page_tokens
  std::vector<std::byte*> pieces;  ///< [layers][pieces], each piece_bytes, aligned to DirectFile::kAlignment
};

/// Memory for the header of one file at a time. Used by one thread.
class PageHeader {
 public:
  explicit PageHeader(const PageShape& shape);
  std::byte* data() { return data_.get(); }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  std::unique_ptr<std::byte, Free> data_;
};

/// Writes a page: a temporary file beside `path`, to the disk, then renamed. Errors: kPermission, kRuntime; nothing is
/// left then. `full` is set if it was for want of room.
Result<void> write_page_file(const std::filesystem::path& path, const PageShape& shape, const PageContent& page,
                             PageHeader& header, bool& full);

/// Reads a page into page.pieces and compares key, tokens, sizes and checksums. Errors: kNotFound; kBadInput: not this
/// page, or damaged (what is wrong, expected against found); kRuntime (I/O). The pieces hold anything then.
Result<void> read_page_file(const std::filesystem::path& path, const PageShape& shape, const PageContent& page,
                            PageHeader& header);

/// XXH3-64 of the pieces of one layer, each seeded by the one before.
uint64_t layer_checksum(std::span<std::byte* const> pieces, int64_t piece_bytes);

/// What a temporary file's name ends with.
inline constexpr const char* kTemporarySuffix = ".tmp";

}  // namespace cpuinfer::storage
