// The file: 8 bytes little-endian header length N; N bytes JSON, starting with '{' and padded with spaces; data.
// The JSON: {"__metadata__": {string: string}, NAME: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}}
// with offsets from the first byte after the header. The data is row-major, little-endian, unpadded; tensors cover it
// exactly.
#include "engine/checkpoint/safetensors.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>

#include "base/check.h"
#include "base/format.h"
#include "base/json.h"
#include "base/text.h"
#include "engine/checkpoint/safetensors_name.h"

namespace cpuinfer::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "tensor data is little-endian and used as it lies");

constexpr int64_t kLengthBytes = 8;
constexpr std::string_view kDamaged = "the file is damaged or truncated; fetch it again";

std::unexpected<Error> bad(std::string message) { return fail(ErrorCode::kBadInput, std::move(message)); }

Result<DType> parse_dtype(const Json* value, const std::string& where) {
  if (value == nullptr || !value->is_string())
    return bad(format("{}: dtype: expected a string, found {}", where, value ? value->kind_name() : "nothing"));
  const std::string& name = value->as_string();
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32})
    if (name == dtype_name(dtype)) return dtype;
  static constexpr std::string_view kOthers[] = {"BOOL",    "U8",      "I8",  "F4",  "F6_E2M3", "F6_E3M2",
                                                 "F8_E5M2", "F8_E4M3", "I16", "U16", "I32",     "U32",
                                                 "I64",     "U64",     "F64", "C64", "F8_E8M0"};
  if (std::find(std::begin(kOthers), std::end(kOthers), name) != std::end(kOthers))
    return fail(ErrorCode::kUnsupported,
                format("{}: dtype {} is not supported; cpuinfer reads BF16, F16 and F32 (no quantized checkpoints)",
                       where, name));
  return bad(format("{}: dtype {} is not one of the safetensors format", where, in_quotes(name)));
}

Result<std::vector<int64_t>> parse_sizes(const Json* value, const std::string& where, const char* key) {
  if (value == nullptr || !value->is_array())
    return bad(
        format("{}: {}: expected an array of integers, found {}", where, key, value ? value->kind_name() : "nothing"));
  std::vector<int64_t> sizes;
  sizes.reserve(value->as_array().size());
  for (const Json& item : value->as_array()) {
    // Integers above 2^63 - 1 arrive as doubles and are refused here too.
    if (!item.is_int() || item.as_int() < 0)
      return bad(format("{}: {}[{}]: expected an integer from 0 to 2^63 - 1, found {}", where, key, sizes.size(),
                        item.is_number() ? to_json_text(item) : item.kind_name()));
    sizes.push_back(item.as_int());
  }
  return sizes;
}

Result<SafetensorsEntry> parse_entry(const std::string& name, const Json& value, int64_t data_start, int64_t data_bytes,
                                     std::string_view file) {
  const std::string where = format("{}: tensor {}", file, in_quotes(name));
  if (const auto fault = tensor_name_fault(name); !fault.empty()) return bad(format("{}: {}", where, fault));
  if (!value.is_object()) return bad(format("{}: expected an object, found {}", where, value.kind_name()));

  SafetensorsEntry entry;
  entry.name = name;
  TRY_ASSIGN(entry.dtype, parse_dtype(value.find("dtype"), where));
  if (const Json* shape = value.find("shape"); shape && shape->is_array() && shape->as_array().size() > kMaxRank)
    return bad(format("{}: shape: has {} dimensions, expected at most {}", where, shape->as_array().size(), kMaxRank));
  TRY_ASSIGN(entry.shape, parse_sizes(value.find("shape"), where, "shape"));
  TRY_ASSIGN(const std::vector<int64_t> offsets, parse_sizes(value.find("data_offsets"), where, "data_offsets"));
  if (offsets.size() != 2)
    return bad(format("{}: data_offsets: expected [begin, end], found {} numbers", where, offsets.size()));
  const int64_t begin = offsets[0], end = offsets[1];
  if (begin > end) return bad(format("{}: data_offsets [{}, {}]: the end lies before the begin", where, begin, end));
  if (end > data_bytes)
    return bad(format("{}: data_offsets [{}, {}]: the file has only {} bytes of data; {}", where, begin, end,
                      data_bytes, kDamaged));
  const std::optional<int64_t> bytes = tensor_bytes(entry.dtype, entry.shape);
  if (!bytes) return bad(format("{}: shape [{}]: the size does not fit 63 bits", where, fmt::join(entry.shape, ", ")));
  if (*bytes != end - begin)
    return bad(format("{}: shape [{}] of {} needs {} bytes, data_offsets [{}, {}] span {}", where,
                      fmt::join(entry.shape, ", "), dtype_name(entry.dtype), *bytes, begin, end, end - begin));
  entry.file_offset = data_start + begin;
  entry.bytes = *bytes;
  return entry;
}

Result<void> check_metadata(const Json& metadata, std::string_view where) {
  if (!metadata.is_object())
    return bad(format("{}: __metadata__: expected an object, found {}", where, metadata.kind_name()));
  for (const auto& [key, value] : metadata.as_object())
    if (!value.is_string())
      return bad(format("{}: __metadata__ {}: expected a string, found {}", where, in_quotes(key), value.kind_name()));
  return {};
}

// The specification wants the data covered exactly: no overlap, no hole, nothing behind the last tensor.
Result<void> check_coverage(std::span<const SafetensorsEntry> entries, int64_t data_start, int64_t file_bytes,
                            std::string_view where) {
  int64_t covered = data_start;
  const SafetensorsEntry* previous = nullptr;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.file_offset < covered)
      return bad(format("{}: tensors {} and {} overlap at data byte {}", where, in_quotes(previous->name),
                        in_quotes(entry.name), entry.file_offset - data_start));
    if (entry.file_offset > covered)
      return bad(format("{}: data bytes {} to {}, before tensor {}, belong to no tensor", where, covered - data_start,
                        entry.file_offset - data_start, in_quotes(entry.name)));
    covered += entry.bytes;
    if (entry.bytes > 0) previous = &entry;
  }
  if (covered != file_bytes)
    return bad(format("{}: {} bytes behind the last tensor belong to no tensor", where, file_bytes - covered));
  return {};
}

}  // namespace

Result<int64_t> safetensors_header_length(std::span<const unsigned char> prefix, int64_t file_bytes,
                                          std::string_view where) {
  if (file_bytes < kLengthBytes)
    return bad(format("{}: is {} bytes long, a safetensors file has at least {}; {}", where, file_bytes, kLengthBytes,
                      kDamaged));
  ENSURE(prefix.size() >= kLengthBytes, "the prefix holds the first 8 bytes of the file");
  uint64_t length = 0;
  for (int i = 0; i < kLengthBytes; ++i) length |= uint64_t{prefix[static_cast<size_t>(i)]} << (8 * i);
  if (length > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes))
    return bad(
        format("{}: the header claims to be {} bytes long, the limit is {}; this is no safetensors file, or it "
               "is damaged",
               where, length, kMaxSafetensorsHeaderBytes));
  if (static_cast<int64_t>(length) > file_bytes - kLengthBytes)
    return bad(format("{}: the header claims to be {} bytes long, the file has {} after its length field; {}", where,
                      length, file_bytes - kLengthBytes, kDamaged));
  return static_cast<int64_t>(length);
}

Result<std::vector<SafetensorsEntry>> parse_safetensors_header(std::string_view header, int64_t file_bytes,
                                                               std::string_view where) {
  const int64_t data_start = kLengthBytes + static_cast<int64_t>(header.size());
  ENSURE(data_start <= file_bytes, "the header lies inside the file");
  if (header.empty() || header.front() != '{') return bad(format("{}: the header does not start with '{{'", where));
  constexpr int kDepth = 4;  // header, entry, shape
  TRY_ASSIGN(const Json root, parse_json(header, format("{}: header", where), {.depth = kDepth}));

  std::vector<SafetensorsEntry> entries;
  entries.reserve(root.as_object().size());
  for (const auto& [name, value] : root.as_object()) {
    if (name == kMetadataName) {
      TRY(check_metadata(value, where));
      continue;
    }
    TRY_ASSIGN(SafetensorsEntry entry, parse_entry(name, value, data_start, file_bytes - data_start, where));
    entries.push_back(std::move(entry));
  }
  // Empty tensors sort before the tensor that starts where they are, so that they neither overlap nor leave holes.
  std::sort(entries.begin(), entries.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    if (a.file_offset != b.file_offset) return a.file_offset < b.file_offset;
    if (a.bytes != b.bytes) return a.bytes < b.bytes;
    return a.name < b.name;
  });
  TRY(check_coverage(entries, data_start, file_bytes, where));
  return entries;
}

Result<SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path) {
  TRY_ASSIGN(InputFile file, InputFile::open(path));
  const std::string where = path.string();
  std::array<unsigned char, kLengthBytes> prefix{};
  const int64_t prefix_bytes = std::min(kLengthBytes, file.bytes());
  TRY(file.read(0, prefix_bytes, reinterpret_cast<char*>(prefix.data())));
  TRY_ASSIGN(const int64_t header_bytes, safetensors_header_length(prefix, file.bytes(), where));
  std::string header(static_cast<size_t>(header_bytes), '\0');
  TRY(file.read(kLengthBytes, header_bytes, header.data()));
  TRY_ASSIGN(std::vector<SafetensorsEntry> entries, parse_safetensors_header(header, file.bytes(), where));
  return SafetensorsFile(std::move(file), std::move(entries));
}

void SafetensorsFile::drop_pages(int64_t file_offset, int64_t bytes) const {
  const int64_t page = ::sysconf(_SC_PAGESIZE);
  const int64_t begin = round_up(file_offset, page);
  // The last page of the file has no neighbour that could still be needed.
  const int64_t end =
      file_offset + bytes == file_bytes() ? round_up(file_bytes(), page) : (file_offset + bytes) / page * page;
  if (begin >= end) return;
  // A hint: when the system refuses, the pages just stay until it needs the memory.
  ::posix_fadvise(descriptor(), begin, end - begin, POSIX_FADV_DONTNEED);
}

}  // namespace cpuinfer::checkpoint
