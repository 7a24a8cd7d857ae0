#include "engine/storage/page_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <system_error>

#include "base/check.h"
#include "base/format.h"
#include "engine/storage/digest.h"
#include "engine/storage/direct_file.h"

namespace cpuinfer::storage {
namespace {

constexpr char kMagic[8] = {'C', 'P', 'U', 'I', 'K', 'V', 'P', 'G'};

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t tokens;  // that the page holds
  uint32_t layers, pieces;
  int64_t piece_bytes;
  PageKey key;
  uint64_t checksum;  // of the header with this field zero
};

constexpr int64_t kTransferPieces = 1000;  // IOV_MAX is 1024

std::string system_text(int error) { return std::error_code(error, std::generic_category()).message(); }

std::unexpected<Error> failure(const std::filesystem::path& path, const char* what, int error) {
  const ErrorCode code = error == ENOENT                                       ? ErrorCode::kNotFound
                         : error == EACCES || error == EPERM || error == EROFS ? ErrorCode::kPermission
                                                                               : ErrorCode::kRuntime;
  return fail(code, format("{}: {}: {}", path.string(), what, system_text(error)));
}

std::byte* token_bytes(std::byte* header) { return header + sizeof(Header); }
std::byte* checksum_bytes(std::byte* header, const PageShape& shape) {
  return token_bytes(header) + shape.page_tokens * static_cast<int64_t>(sizeof(TokenId));
}

void fill_header(const PageShape& shape, const PageContent& page, std::byte* bytes) {
  std::memset(bytes, 0, static_cast<size_t>(shape.header_bytes()));
  Header header = {.magic = {},
                   .version = kPageLayoutVersion,
                   .tokens = static_cast<uint32_t>(page.tokens.size()),
                   .layers = static_cast<uint32_t>(shape.layers),
                   .pieces = static_cast<uint32_t>(shape.pieces),
                   .piece_bytes = shape.piece_bytes,
                   .key = page.key,
                   .checksum = 0};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  std::memcpy(token_bytes(bytes), page.tokens.data(), page.tokens.size() * sizeof(TokenId));
  std::byte* next = checksum_bytes(bytes, shape);
  for (int layer = 0; layer < shape.layers; ++layer, next += sizeof(uint64_t)) {
    const std::span<std::byte* const> pieces =
        std::span(page.pieces).subspan(static_cast<size_t>(layer) * shape.pieces, shape.pieces);
    const uint64_t checksum = layer_checksum(pieces, shape.piece_bytes);
    std::memcpy(next, &checksum, sizeof(checksum));
  }
  std::memcpy(bytes, &header, sizeof(header));
  header.checksum = xxh3_64({bytes, static_cast<size_t>(shape.header_bytes())}, 0);
  std::memcpy(bytes, &header, sizeof(header));
}

// Whether the header is that of this page; it has its checksum field zeroed afterwards.
Result<void> check_header(const std::filesystem::path& path, const PageShape& shape, const PageKey& key,
                          std::span<const TokenId> tokens, std::byte* bytes) {
  Header header;
  std::memcpy(&header, bytes, sizeof(header));
  const auto bad = [&](const std::string& what) {
    return fail(ErrorCode::kBadInput, format("{}: {}", path.string(), what));
  };
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) return bad("is no page of a KV store");
  if (header.version != kPageLayoutVersion)
    return bad(format("is of layout version {}, expected {}", header.version, kPageLayoutVersion));
  const uint64_t expected = header.checksum;
  header.checksum = 0;
  std::memcpy(bytes, &header, sizeof(header));
  if (const uint64_t found = xxh3_64({bytes, static_cast<size_t>(shape.header_bytes())}, 0); found != expected)
    return bad(format("the header is damaged: its checksum is {:016x}, expected {:016x}", found, expected));
  if (header.layers != static_cast<uint32_t>(shape.layers) || header.pieces != static_cast<uint32_t>(shape.pieces) ||
      header.piece_bytes != shape.piece_bytes)
    return bad(format("holds {} layers x {} pieces x {} bytes, expected {} x {} x {}", header.layers, header.pieces,
                      header.piece_bytes, shape.layers, shape.pieces, shape.piece_bytes));
  if (header.key != key) return bad(format("holds the page {}", header.key.hex()));
  if (header.tokens != tokens.size() ||
      std::memcmp(token_bytes(bytes), tokens.data(), tokens.size() * sizeof(TokenId)) != 0)
    return bad(format("holds {} other tokens than the {} expected", header.tokens, tokens.size()));
  return {};
}

// Calls transfer(iovec, count, offset) until all of header (if any) and pieces has gone through from `offset` on.
// 0 or errno; ENODATA: the file has ended.
template <typename Transfer>
int transfer_all(std::span<const iovec> parts, int64_t offset, Transfer&& transfer) {
  size_t part = 0;
  size_t within = 0;  // bytes of it that are done
  while (part < parts.size()) {
    iovec now[kTransferPieces];
    const size_t count = std::min<size_t>(parts.size() - part, kTransferPieces);
    std::copy_n(parts.begin() + static_cast<std::ptrdiff_t>(part), count, now);
    now[0].iov_base = static_cast<std::byte*>(now[0].iov_base) + within;
    now[0].iov_len -= within;
    const ssize_t done = transfer(now, static_cast<int>(count), offset);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return errno;
    if (done == 0) return ENODATA;
    offset += done;
    for (size_t left = static_cast<size_t>(done); left > 0;) {
      const size_t rest = parts[part].iov_len - within;
      const size_t step = std::min(left, rest);
      left -= step;
      within += step;
      if (within == parts[part].iov_len) ++part, within = 0;
    }
  }
  return 0;
}

std::vector<iovec> parts_of(const PageShape& shape, const PageContent& page, PageHeader& header) {
  std::vector<iovec> parts;
  parts.reserve(page.pieces.size() + 1);
  parts.push_back({header.data(), static_cast<size_t>(shape.header_bytes())});
  for (std::byte* piece : page.pieces) parts.push_back({piece, static_cast<size_t>(shape.piece_bytes)});
  return parts;
}

// 0 or errno.
template <typename Sync>
int synced(Sync&& sync) {
  while (sync() != 0)
    if (errno != EINTR) return errno;
  return 0;
}

int sync_directory(const std::filesystem::path& directory) {
  const int descriptor = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return errno;
  const int error = synced([&] { return ::fsync(descriptor); });
  ::close(descriptor);
  return error;
}

// 0 or errno.
int write_all(const DirectFile& file, const std::vector<iovec>& parts) {
  if (const int error = transfer_all(parts, 0, [&](const iovec* now, int count, off_t at) {
        return ::pwritev(file.descriptor(), now, count, at);
      }))
    return error;
  return synced([&] { return ::fdatasync(file.descriptor()); });
}

Result<DirectFile> open_page(const std::filesystem::path& path, const PageShape& shape) {
  TRY_ASSIGN(DirectFile file, DirectFile::open(path, FileAccess::kRead));
  TRY_ASSIGN(const int64_t bytes, file.bytes());
  if (bytes == shape.file_bytes()) return file;
  return fail(ErrorCode::kBadInput,
              format("{}: is {} bytes long, expected {}", path.string(), bytes, shape.file_bytes()));
}

uint64_t checksum_at(const std::byte* checksums, int layer) {
  uint64_t checksum;
  std::memcpy(&checksum, checksums + layer * sizeof(checksum), sizeof(checksum));
  return checksum;
}

}  // namespace

int64_t PageShape::header_bytes() const {
  return round_up(static_cast<int64_t>(sizeof(Header)) + page_tokens * static_cast<int64_t>(sizeof(TokenId)) +
                      layers * static_cast<int64_t>(sizeof(uint64_t)),
                  DirectFile::kAlignment);
}

PageHeader::PageHeader(const PageShape& shape)
    : data_(static_cast<std::byte*>(
          std::aligned_alloc(static_cast<size_t>(DirectFile::kAlignment), static_cast<size_t>(shape.header_bytes())))) {
  if (data_ == nullptr) throw std::bad_alloc();
}

void PageHeader::Free::operator()(std::byte* data) const { std::free(data); }

uint64_t layer_checksum(std::span<std::byte* const> pieces, int64_t piece_bytes) {
  uint64_t checksum = 0;
  for (const std::byte* piece : pieces) checksum = xxh3_64({piece, static_cast<size_t>(piece_bytes)}, checksum);
  return checksum;
}

Result<void> write_page_file(const std::filesystem::path& path, const PageShape& shape, const PageContent& page,
                             PageHeader& header, bool& full) {
  ENSURE(!page.tokens.empty() && static_cast<int>(page.tokens.size()) <= shape.page_tokens &&
             static_cast<int>(page.pieces.size()) == shape.layers * shape.pieces,
         "a page has tokens, and a piece for every layer and kv head");
  fill_header(shape, page, header.data());
  const std::filesystem::path temporary = path.string() + kTemporarySuffix;
  ::unlink(temporary.c_str());
  Result<DirectFile> created = DirectFile::open(temporary, FileAccess::kCreate);
  full = !created && (errno == ENOSPC || errno == EDQUOT);
  if (!created) return std::unexpected(std::move(created).error());
  const DirectFile& file = *created;
  ::fchmod(file.descriptor(), 0600);  // what people ask is in it
  int error = write_all(file, parts_of(shape, page, header));
  if (error == 0 && ::rename(temporary.c_str(), path.c_str()) != 0) error = errno;
  if (error == 0) error = sync_directory(path.parent_path());
  full = error == ENOSPC || error == EDQUOT;
  if (error == 0) return {};
  ::unlink(temporary.c_str());
  return failure(path, "cannot write the page", error);
}

Result<void> read_page_file(const std::filesystem::path& path, const PageShape& shape, const PageContent& page,
                            PageHeader& header) {
  TRY_ASSIGN(const DirectFile file, open_page(path, shape));
  const int error = transfer_all(parts_of(shape, page, header), 0, [&](const iovec* now, int count, off_t at) {
    return ::preadv(file.descriptor(), now, count, at);
  });
  if (error != 0) return failure(path, "cannot read the page", error);
  TRY(check_header(path, shape, page.key, page.tokens, header.data()));
  const std::byte* const checksums = checksum_bytes(header.data(), shape);
  for (int layer = 0; layer < shape.layers; ++layer) {
    const uint64_t expected = checksum_at(checksums, layer);
    const uint64_t found = layer_checksum(
        std::span(page.pieces).subspan(static_cast<size_t>(layer) * shape.pieces, shape.pieces), shape.piece_bytes);
    if (found != expected)
      return fail(ErrorCode::kBadInput, format("{}: layer {} is damaged: its checksum is {:016x}, expected {:016x}",
                                               path.string(), layer, found, expected));
  }
  return {};
}

Result<PageLayers> PageLayers::open(const std::filesystem::path& path, const PageShape& shape, const PageKey& key,
                                    std::span<const TokenId> tokens) {
  PageLayers page;
  TRY_ASSIGN(page.file_, open_page(path, shape));
  PageHeader header(shape);
  TRY(page.file_.read(0, {header.data(), static_cast<size_t>(shape.header_bytes())}));
  TRY(check_header(path, shape, key, tokens, header.data()));
  page.payload_offset_ = shape.header_bytes();
  page.layer_bytes_ = shape.layer_bytes();
  const std::byte* const checksums = checksum_bytes(header.data(), shape);
  for (int layer = 0; layer < shape.layers; ++layer) page.checksums_.push_back(checksum_at(checksums, layer));
  return page;
}

}  // namespace cpuinfer::storage
