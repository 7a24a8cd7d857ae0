#include "engine/load/packed_file.h"

#include <cstring>
#include <utility>

#include "base/format.h"
#include "base/json.h"
#include "base/text.h"
#include "engine/load/fingerprint.h"
#include "engine/storage/aligned_bytes.h"

namespace cpuinfer::load {

using storage::AlignedBytes;

namespace {

constexpr char kMagic[8] = {'C', 'P', 'I', 'N', 'F', 'P', 'K', 'W'};
constexpr int64_t kMaxTableBytes = 64_MiB;  // of the largest published model 3 MiB
constexpr const char* kPackAgain = "run `cpuinfer pack` again";

struct Prefix {
  char magic[8];
  uint32_t version;
  uint32_t zero;
  uint64_t table_bytes;
  uint64_t table_hash;
};
static_assert(sizeof(Prefix) == 32);

// [name, outputs, terms, segments] of the table.
struct Shape {
  int64_t outputs = 0, terms = 0, segments = 0;
  friend bool operator==(const Shape&, const Shape&) = default;
};
Shape shape_of(const model::WeightSpec& spec) {
  if (spec.vector != nullptr) return {spec.vector->size(), 0, 0};
  return {spec.matrix->outputs(), spec.matrix->terms(), spec.matrix->segments()};
}
std::string shape_text(const Shape& shape) {
  if (shape.segments == 0) return format("[{}]", shape.outputs);
  return format("[{}, {}]{}", shape.outputs, shape.terms,
                shape.segments == 1 ? "" : format(" in {} segments", shape.segments));
}

}  // namespace

std::vector<std::byte> packed_header(const PackedLayout& layout, storage::Digest128 fingerprint) {
  std::string table = format(R"({{"numerics_version":{},"fingerprint":"{}","bytes":{},"parts":[)",
                             model::kNumericsVersion, fingerprint.hex(), layout.bytes);
  for (const PackedPart& part : layout.parts) {
    table += format("{}\n{{\"name\":{},\"offset\":{},\"bytes\":{},\"digest\":\"{}\",\"weights\":[",
                    &part == layout.parts.data() ? "" : ",", to_json_text(Json(part.name)), part.offset, part.bytes,
                    part.digest.hex());
    const std::span<const PackedWeight> weights = layout.weights_of(part);
    for (const PackedWeight& weight : weights) {
      const Shape shape = shape_of(weight.spec);
      table += format("{}[{},{},{},{}]", &weight == weights.data() ? "" : ",",
                      to_json_text(Json(weight_name(weight.spec))), shape.outputs, shape.terms, shape.segments);
    }
    table += "]}";
  }
  table += "]}\n";
  Prefix prefix{.magic = {},
                .version = kPackedLayoutVersion,
                .zero = 0,
                .table_bytes = table.size(),
                .table_hash = storage::xxh3_64(table)};
  std::memcpy(prefix.magic, kMagic, sizeof(kMagic));
  std::vector<std::byte> header(round_up(sizeof(prefix) + table.size(), static_cast<size_t>(kPackedAlignment)));
  std::memcpy(header.data(), &prefix, sizeof(prefix));
  std::memcpy(header.data() + sizeof(prefix), table.data(), table.size());
  return header;
}

Result<PackedFile> PackedFile::open(const std::filesystem::path& path, bool direct) {
  TRY_ASSIGN(storage::DirectFile file, storage::DirectFile::open(path, storage::FileAccess::kRead, direct));
  PackedFile packed(std::move(file));
  TRY(packed.read_header());
  return packed;
}

Result<void> PackedFile::read_header() {
  const std::string where = path().string();
  const auto bad = [&](std::string what) { return fail(ErrorCode::kBadInput, format("{}: {}", where, what)); };
  TRY_ASSIGN(const int64_t file_bytes, file_.bytes());
  if (file_bytes < kPackedAlignment)
    return bad(format("is {} bytes long, a file of packed weights has at least {}: {}", file_bytes, kPackedAlignment,
                      kPackAgain));
  const auto read = [&](int64_t bytes) -> Result<AlignedBytes> {
    AlignedBytes buffer(bytes);
    TRY(file_.read(0, buffer.all()));
    return buffer;
  };
  TRY_ASSIGN(const AlignedBytes first, read(kPackedAlignment));
  Prefix prefix;
  std::memcpy(&prefix, first.data(), sizeof(prefix));
  if (std::memcmp(prefix.magic, kMagic, sizeof(kMagic)) != 0)
    return bad("is no file of packed weights: it does not begin with CPINFPKW");
  if (prefix.version != kPackedLayoutVersion)
    return fail(ErrorCode::kUnsupported,
                format("{}: is packed in layout version {}, this cpuinfer reads version {}: {}", where, prefix.version,
                       kPackedLayoutVersion, kPackAgain));
  if (prefix.zero != 0 || prefix.table_bytes > static_cast<uint64_t>(kMaxTableBytes))
    return bad(format("the header is damaged (a table of {} bytes): {}", prefix.table_bytes, kPackAgain));
  const int64_t table_bytes = static_cast<int64_t>(prefix.table_bytes);
  data_offset_ = round_up(static_cast<int64_t>(sizeof(prefix)) + table_bytes, kPackedAlignment);
  if (file_bytes < data_offset_)
    return bad(
        format("is {} bytes long, its header alone has {}: it is truncated, {}", file_bytes, data_offset_, kPackAgain));
  TRY_ASSIGN(const AlignedBytes header, read(data_offset_));
  const std::string table(reinterpret_cast<const char*>(header.data()) + sizeof(prefix),
                          static_cast<size_t>(table_bytes));
  if (storage::xxh3_64(table) != prefix.table_hash)
    return bad(format("the header is damaged (its checksum is another): {}", kPackAgain));
  TRY(parse_table(table));
  if (file_bytes < data_offset_ + bytes_)
    return bad(
        format("is {} bytes long, expected {}: it is truncated, {}", file_bytes, data_offset_ + bytes_, kPackAgain));
  return {};
}

// The checksum was right, so what is wrong here was written wrong: one sentence for all of it.
Result<void> PackedFile::parse_table(const std::string& text) {
  TRY_ASSIGN(const Json json, parse_json(text, path().string()));
  const auto bad = [&](std::string_view what) {
    return fail(ErrorCode::kBadInput,
                format("{}: the table of its header has {}: {}", path().string(), what, kPackAgain));
  };
  const auto integer = [](const Json* value, int64_t& target) {
    if (value == nullptr || !value->is_int() || value->as_int() < 0) return false;
    target = value->as_int();
    return true;
  };
  const auto digest = [](const Json* value, storage::Digest128& target) {
    const auto parsed =
        value != nullptr && value->is_string() ? storage::parse_digest(value->as_string()) : std::nullopt;
    target = parsed.value_or(storage::Digest128{});
    return parsed.has_value();
  };
  int64_t numerics = 0;
  if (!integer(json.find("numerics_version"), numerics)) return bad("no numerics_version");
  if (numerics != model::kNumericsVersion)
    return fail(ErrorCode::kUnsupported,
                format("{}: is packed for numerics version {}, this cpuinfer has version {}: {}", path().string(),
                       numerics, model::kNumericsVersion, kPackAgain));
  if (!digest(json.find("fingerprint"), fingerprint_)) return bad("no fingerprint");
  constexpr int64_t kMaxBytes = int64_t{1} << 60;
  if (!integer(json.find("bytes"), bytes_) || bytes_ > kMaxBytes) return bad("no number of bytes");
  const Json* const parts = json.find("parts");
  if (parts == nullptr || !parts->is_array()) return bad("no parts");
  for (const Json& entry : parts->as_array()) {
    TablePart& part = parts_.emplace_back();
    const Json* const name = entry.find("name");
    const Json* const weights = entry.find("weights");
    if (name == nullptr || !name->is_string() || !integer(entry.find("offset"), part.offset) ||
        !integer(entry.find("bytes"), part.bytes) || !digest(entry.find("digest"), part.digest) || weights == nullptr ||
        !weights->is_array())
      return bad(format("a part {} that is not whole", parts_.size()));
    part.name = name->as_string();
    for (const Json& row : weights->as_array()) {
      TableWeight& weight = part.weights.emplace_back();
      if (!row.is_array() || row.as_array().size() != 4 || !row.as_array()[0].is_string() ||
          !integer(&row.as_array()[1], weight.outputs) || !integer(&row.as_array()[2], weight.terms) ||
          !integer(&row.as_array()[3], weight.segments))
        return bad(format("a weight of {} that is not whole", in_quotes(part.name)));
      weight.name = row.as_array()[0].as_string();
      ++weight_count_;
    }
  }
  storage::Digest128 sum;
  for (const TablePart& part : parts_) sum += part.digest;
  if (sum != fingerprint_) return bad("a fingerprint that is not the sum of its parts");
  return {};
}

Result<PackedLayout> PackedFile::layout_for(model::Model& model) const {
  PackedLayout layout = lay_out_packed(model);
  const auto other = [&](std::string what) {
    return fail(ErrorCode::kBadInput, format("{}: {}: config.json and weights do not belong together, {}",
                                             path().string(), what, kPackAgain));
  };
  if (layout.parts.size() != parts_.size())
    return other(format("expected {} parts by config.json, file has {}", layout.parts.size(), parts_.size()));
  for (size_t p = 0; p < parts_.size(); ++p) {
    PackedPart& part = layout.parts[p];
    const TablePart& found = parts_[p];
    const std::span<const PackedWeight> weights = layout.weights_of(part);
    if (part.name != found.name || weights.size() != found.weights.size())
      return other(format("part {}: expected {} with {} weights by config.json, file has {} with {}", p,
                          in_quotes(part.name), weights.size(), in_quotes(found.name), found.weights.size()));
    for (size_t w = 0; w < weights.size(); ++w) {
      const TableWeight& row = found.weights[w];
      const Shape expected = shape_of(weights[w].spec), shape = {row.outputs, row.terms, row.segments};
      if (row.name != weight_name(weights[w].spec) || shape != expected)
        return other(format("expected {} {} by config.json, file has {} {}", in_quotes(weight_name(weights[w].spec)),
                            shape_text(expected), in_quotes(row.name), shape_text(shape)));
    }
    if (part.offset != found.offset || part.bytes != found.bytes)
      return other(format("{}: expected {} bytes at byte {} by config.json, file has {} at {}", in_quotes(part.name),
                          part.bytes, part.offset, found.bytes, found.offset));
    part.digest = found.digest;
  }
  if (layout.bytes != bytes_)
    return other(format("expected {} bytes by config.json, file has {}", layout.bytes, bytes_));
  return layout;
}

std::unexpected<Error> PackedFile::damaged(const PackedPart& part, storage::Digest128 found) const {
  return fail(ErrorCode::kBadInput,
              format("{}: {} is damaged: {} bytes at byte {} have the checksum {}, expected {}; {}", path().string(),
                     part.name, part.bytes, data_offset_ + part.offset, found.hex(), part.digest.hex(), kPackAgain));
}

}  // namespace cpuinfer::load
