// model.safetensors.index.json: {"metadata": {...}, "weight_map": {TENSOR: FILE}}, FILE beside the index.
#include "engine/checkpoint/checkpoint.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <system_error>

#include "base/check.h"
#include "base/format.h"
#include "base/text.h"
#include "engine/checkpoint/checkpoint_file.h"
#include "engine/checkpoint/safetensors_name.h"

namespace cpuinfer::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxConfigBytes = 16_MiB;
constexpr int64_t kMaxIndexBytes = 32_MiB;  // published models stay below 10 MiB
constexpr const char* kConfigName = "config.json";
constexpr const char* kGenerationConfigName = "generation_config.json";
constexpr const char* kWeightsName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";

// Tensor name -> file name, sorted by tensor name. Empty when there is no index.
using WeightMap = std::map<std::string, std::string, std::less<>>;

// True for a dangling link too: opening it then says what is wrong (an incomplete Hugging Face cache has some).
bool has_entry(const fs::path& path) {
  std::error_code ignored;
  return fs::symlink_status(path, ignored).type() != fs::file_type::not_found;
}

Result<Json> read_json_object(const fs::path& path, int64_t max_bytes) {
  TRY_ASSIGN(const std::string text, read_whole_file(path, max_bytes));
  TRY_ASSIGN(Json json, parse_json(text, path.string()));
  if (!json.is_object())
    return fail(ErrorCode::kBadInput, format("{}: expected a JSON object, found {}", path.string(), json.kind_name()));
  return json;
}

Result<void> check_directory(const fs::path& directory) {
  std::error_code error;
  const fs::file_status status = fs::status(directory, error);
  if (status.type() == fs::file_type::not_found)
    return fail(ErrorCode::kNotFound, format("{}: no such directory", directory.string()));
  if (!fs::status_known(status))
    return fail(ErrorCode::kNotFound, format("{}: cannot be read: {}", directory.string(), error.message()));
  if (!fs::is_directory(status))
    return fail(ErrorCode::kBadInput,
                format("{}: is a file; expected a directory with config.json and *.safetensors "
                       "(a Hugging Face checkpoint){}",
                       directory.string(), directory.extension() == ".gguf" ? "; GGUF files are not supported" : ""));
  return {};
}

// The directory has neither model.safetensors nor an index: says what it has instead.
std::unexpected<Error> no_weights(const fs::path& directory) {
  bool pytorch = false, gguf = false;
  std::string other;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const fs::path name = it->path().filename();
    pytorch |= name.extension() == ".bin" || name.extension() == ".pt" || name.extension() == ".pth";
    gguf |= name.extension() == ".gguf";
    if (name.extension() == ".safetensors" && (other.empty() || name.string() < other)) other = name.string();
  }
  const std::string where = directory.string();
  if (!other.empty())
    return fail(ErrorCode::kNotFound,
                format("{}: has {} but no {}; fetch the index too (a single file must be named {})", where, other,
                       kIndexName, kWeightsName));
  if (pytorch)
    return fail(ErrorCode::kUnsupported,
                format("{}: has only PyTorch *.bin weights; cpuinfer reads safetensors (save the model again with "
                       "Transformers: model.save_pretrained(DIR))",
                       where));
  if (gguf)
    return fail(ErrorCode::kUnsupported,
                format("{}: has only GGUF weights; cpuinfer reads safetensors (fetch the original checkpoint)", where));
  return fail(ErrorCode::kNotFound, format("{}: no weights: neither {} nor {}", where, kWeightsName, kIndexName));
}

// The index is as untrusted as the rest: a shard's name may not lead out of the directory.
Result<WeightMap> read_index(const fs::path& path) {
  const std::string where = path.string();
  const auto bad = [&](std::string what) { return fail(ErrorCode::kBadInput, format("{}: {}", where, what)); };
  TRY_ASSIGN(const Json index, read_json_object(path, kMaxIndexBytes));
  const Json* weight_map = index.find("weight_map");
  if (weight_map == nullptr || !weight_map->is_object())
    return bad(format("weight_map: expected an object, found {}", weight_map ? weight_map->kind_name() : "nothing"));
  if (weight_map->as_object().empty()) return bad("weight_map: is empty, expected the tensors of the model");
  WeightMap map;
  for (const auto& [tensor, file] : weight_map->as_object()) {
    if (!file.is_string())
      return bad(format("weight_map: {}: expected a file name, found {}", in_quotes(tensor), file.kind_name()));
    const std::string& name = file.as_string();
    const bool plain = name.find('/') == name.npos && name.find('\0') == name.npos && !name.starts_with('.');
    if (!plain || !name.ends_with(".safetensors"))
      return bad(format("weight_map: {}: expected the name of a .safetensors file beside the index, found {}",
                        in_quotes(tensor), in_quotes(name)));
    map.emplace(tensor, name);
  }
  return map;
}

// Does the header of `file` agree with the index? `tensor` is one of its entries.
Result<void> check_against_index(const WeightMap& map, const SafetensorsFile& file, const SafetensorsEntry& tensor) {
  const auto row = map.find(tensor.name);
  if (row == map.end())
    return fail(ErrorCode::kBadInput, format("{}: tensor {} is not in {}; index and shards are of different "
                                             "checkpoints",
                                             file.path().string(), in_quotes(tensor.name), kIndexName));
  if (row->second != file.path().filename())
    return fail(ErrorCode::kBadInput, format("{}: tensor {} should be in {} according to {}", file.path().string(),
                                             in_quotes(tensor.name), row->second, kIndexName));
  return {};
}

}  // namespace

Result<Checkpoint> Checkpoint::open(const fs::path& directory) {
  Checkpoint checkpoint;
  checkpoint.directory_ = directory;
  TRY(check_directory(directory));
  TRY_ASSIGN(checkpoint.config_, read_json_object(directory / kConfigName, kMaxConfigBytes));
  if (has_entry(directory / kGenerationConfigName)) {
    TRY_ASSIGN(Json defaults, read_json_object(directory / kGenerationConfigName, kMaxConfigBytes));
    checkpoint.generation_config_ = std::move(defaults);
  }

  if (has_entry(directory / kPackedName)) {
    TRY_ASSIGN(const InputFile packed, InputFile::open(directory / kPackedName));
    checkpoint.packed_ = true;
    checkpoint.total_bytes_ = packed.bytes();
    return checkpoint;
  }

  // As Transformers does, the single file wins over an index.
  WeightMap map;
  std::vector<std::string> names;
  if (has_entry(directory / kWeightsName)) {
    names.emplace_back(kWeightsName);
  } else if (has_entry(directory / kIndexName)) {
    TRY_ASSIGN(map, read_index(directory / kIndexName));
    for (const auto& [tensor, file] : map) names.push_back(file);
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
  } else {
    return no_weights(directory);
  }

  for (const std::string& name : names) {
    Result<SafetensorsFile> opened = SafetensorsFile::open(directory / name);
    if (!opened && !map.empty()) {
      Error error = std::move(opened).error();
      if (error.code == ErrorCode::kNotFound) error.message += format(" (a shard named in {})", kIndexName);
      return std::unexpected<Error>(std::move(error));
    }
    TRY_ASSIGN(SafetensorsFile file, std::move(opened));
    for (const SafetensorsEntry& entry : file.entries()) {
      if (!map.empty()) TRY(check_against_index(map, file, entry));
      checkpoint.tensors_.push_back(
          {entry.name, entry.dtype, entry.shape, entry.bytes, checkpoint.file_count(), entry.file_offset});
      checkpoint.total_bytes_ += entry.bytes;  // no overflow: the files' sizes are real
    }
    checkpoint.files_.push_back(std::move(file));
  }
  if (checkpoint.tensors_.empty())
    return fail(ErrorCode::kBadInput, format("{}: the weights hold no tensors", directory.string()));

  checkpoint.by_name_.resize(checkpoint.tensors_.size());
  std::iota(checkpoint.by_name_.begin(), checkpoint.by_name_.end(), 0);
  std::sort(checkpoint.by_name_.begin(), checkpoint.by_name_.end(), [&](int a, int b) {
    return checkpoint.tensors_[static_cast<size_t>(a)].name < checkpoint.tensors_[static_cast<size_t>(b)].name;
  });
  for (const auto& [tensor, file] : map)
    if (checkpoint.find(tensor) == nullptr)
      return fail(ErrorCode::kBadInput, format("{}: tensor {} is missing; {} says it is in this file",
                                               (directory / file).string(), in_quotes(tensor), kIndexName));
  return checkpoint;
}

const TensorRef* Checkpoint::find(std::string_view name) const {
  const auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name, [&](int index, std::string_view wanted) {
    return tensors_[static_cast<size_t>(index)].name < wanted;
  });
  if (at == by_name_.end()) return nullptr;
  const TensorRef& tensor = tensors_[static_cast<size_t>(*at)];
  return tensor.name == name ? &tensor : nullptr;
}

Result<void> Checkpoint::read(const TensorRef& tensor, int64_t offset, std::span<std::byte> out) const {
  ENSURE(offset >= 0 && offset <= tensor.bytes && static_cast<int64_t>(out.size()) <= tensor.bytes - offset,
         "the bytes lie inside the tensor");
  Result<void> done = files_[static_cast<size_t>(tensor.file)].read(tensor.file_offset + offset, out);
  if (!done) done.error().message += format(" (reading tensor {} from its byte {})", in_quotes(tensor.name), offset);
  return done;
}

}  // namespace cpuinfer::checkpoint
