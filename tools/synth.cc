// cpuinfer synth: a checkpoint with random weights. Every element is a function of (seed, tensor name, index), so the
// bytes depend neither on threads nor on the size of files.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <set>
#include <system_error>
#include <thread>
#include <vector>

#include "base/format.h"
#include "base/json.h"
#include "engine/checkpoint/checkpoint_file.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/checkpoint/tokenizer.h"
#include "engine/model/config.h"
#include "engine/model/model.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/progress.h"
#include "tools/session.h"
#include "tools/signals.h"
#include "tools/synth_configs.h"

namespace cpuinfer::tools {
namespace {

constexpr double kDeviation = 0.02;  // initializer_range of the published configs
constexpr int kTableSize = 1 << 16;

// Inverse of the normal distribution; relative error below 1.2e-9. Algorithm: P. J. Acklam, "An algorithm for computing
// the inverse normal cumulative distribution function", 2003.
double inverse_normal(double p) {
  constexpr double a[] = {-3.969683028665376e+01, 2.209460984245205e+02,  -2.759285104469687e+02,
                          1.383577518672690e+02,  -3.066479806614716e+01, 2.506628277459239e+00};
  constexpr double b[] = {-5.447609879822406e+01, 1.615858368580409e+02, -1.556989798598866e+02, 6.680131188771972e+01,
                          -1.328068155288572e+01};
  constexpr double c[] = {-7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838e+00,
                          -2.549732539343734e+00, 4.374664141464968e+00,  2.938163982698783e+00};
  constexpr double d[] = {7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e+00, 3.754408661907416e+00};
  if (p > 0.5) return -inverse_normal(1 - p);
  if (p < 0.02425) {
    const double q = std::sqrt(-2 * std::log(p));
    return (((((c[0] * q + c[1]) * q + c[2]) * q + c[3]) * q + c[4]) * q + c[5]) /
           ((((d[0] * q + d[1]) * q + d[2]) * q + d[3]) * q + 1);
  }
  const double q = p - 0.5, r = q * q;
  return (((((a[0] * r + a[1]) * r + a[2]) * r + a[3]) * r + a[4]) * r + a[5]) * q /
         (((((b[0] * r + b[1]) * r + b[2]) * r + b[3]) * r + b[4]) * r + 1);
}

uint16_t half_bits(float value) {
  const _Float16 half = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof(bits));
  return bits;
}

// The bits of kTableSize equally probable values of a normal distribution.
template <typename Bits, typename Convert>
std::vector<Bits> normal_table(double mean, Convert convert) {
  std::vector<Bits> table(kTableSize);
  for (int i = 0; i < kTableSize; ++i)
    table[i] = convert(static_cast<float>(mean + kDeviation * inverse_normal((i + 0.5) / kTableSize)));
  return table;
}

// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): number n of stream `key`.
inline uint64_t random_bits(uint64_t key, uint64_t n) {
  uint64_t z = key + (n + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// Elements of one type: table look-ups by 16 random bits each, four to a random number. Immutable.
template <typename Bits>
class Generator {
 public:
  template <typename Convert>
  explicit Generator(Convert convert)
      : weights_(normal_table<Bits>(0, convert)), norms_(normal_table<Bits>(1, convert)) {}

  /// Elements first .. first + count of a tensor.
  void fill(uint64_t key, bool norm, int64_t first, int64_t count, std::byte* out) const {
    const Bits* table = norm ? norms_.data() : weights_.data();
    int64_t i = 0;
    const auto one = [&](int64_t index) {
      return table[(random_bits(key, static_cast<uint64_t>(index) / 4) >> (16 * (index % 4))) & 0xffff];
    };
    const auto store = [&](Bits value) {
      std::memcpy(out + (i++) * static_cast<int64_t>(sizeof(Bits)), &value, sizeof(Bits));
    };
    while (i < count && (first + i) % 4 != 0) store(one(first + i));
    for (uint64_t block = static_cast<uint64_t>(first + i) / 4; i + 4 <= count; ++block) {
      const uint64_t bits = random_bits(key, block);
      const Bits four[4] = {table[bits & 0xffff], table[(bits >> 16) & 0xffff], table[(bits >> 32) & 0xffff],
                            table[bits >> 48]};
      std::memcpy(out + i * static_cast<int64_t>(sizeof(Bits)), four, sizeof(four));
      i += 4;
    }
    while (i < count) store(one(first + i));
  }

 private:
  std::vector<Bits> weights_, norms_;
};

uint64_t name_key(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return random_bits(seed, hash);
}

/// The files of the checkpoint.
struct Shard {
  std::string file;
  std::vector<checkpoint::TensorSource> tensors;
  int64_t bytes = 0;
};

std::vector<model::TensorSpec> list_tensors(model::Model& model) {
  std::vector<model::TensorSpec> tensors;
  std::set<std::string> seen;  // a tied embedding may be listed for both of its uses
  model.visit_weights([&](const model::WeightSpec& spec) {
    for (const model::TensorSpec& tensor : spec.tensors)
      if (seen.insert(tensor.name).second) tensors.push_back(tensor);
  });
  return tensors;
}

template <typename Bits>
checkpoint::TensorSource make_source(const model::TensorSpec& tensor, const SynthOptions& options,
                                     const Generator<Bits>& generator, std::atomic<int64_t>& written) {
  const uint64_t key = name_key(options.seed, tensor.name);
  const bool norm = tensor.name.ends_with("norm.weight");
  return {tensor.name, options.dtype, tensor.shape,
          [key, norm, &generator, &written](int64_t offset, std::span<std::byte> out) {
            // After an interruption only the rest of this file is left to get through; it is removed afterwards.
            if (cancel_flag().load(std::memory_order_relaxed)) return;
            constexpr int64_t kBytes = sizeof(Bits);
            generator.fill(key, norm, offset / kBytes, static_cast<int64_t>(out.size()) / kBytes, out.data());
            written.fetch_add(static_cast<int64_t>(out.size()), std::memory_order_relaxed);
          }};
}

template <typename Bits>
std::vector<Shard> make_shards(const std::vector<model::TensorSpec>& tensors, const SynthOptions& options,
                               const Generator<Bits>& generator, std::atomic<int64_t>& written) {
  std::vector<Shard> shards(1);
  for (const model::TensorSpec& tensor : tensors) {
    int64_t bytes = dtype_bytes(options.dtype);
    for (const int64_t size : tensor.shape) bytes *= size;  // a parsed config's products fit
    if (!shards.back().tensors.empty() && shards.back().bytes + bytes > options.shard_bytes) shards.emplace_back();
    shards.back().tensors.push_back(make_source(tensor, options, generator, written));
    shards.back().bytes += bytes;
  }
  for (size_t i = 0; i < shards.size(); ++i)
    shards[i].file =
        shards.size() == 1 ? "model.safetensors" : format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  return shards;
}

Result<void> write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (!file)
    return fail(ErrorCode::kRuntime,
                format("{}: cannot write: {}", path.string(), std::generic_category().message(errno)));
  return {};
}

Result<void> write_shards(const std::filesystem::path& directory, const std::vector<Shard>& shards, int threads,
                          const std::atomic<int64_t>& written, int64_t total, Console& console) {
  std::atomic<size_t> next{0};
  std::atomic<int> running{threads};
  std::mutex mutex;
  Result<void> result;
  // Plain threads: these wait for the disk, the engine's pinned team is for computing.
  std::vector<std::jthread> workers;
  for (int i = 0; i < threads; ++i) {
    workers.emplace_back([&] {
      for (size_t shard; (shard = next++) < shards.size() && !cancel_flag().load();) {
        Result<void> done = checkpoint::write_safetensors(directory / shards[shard].file, shards[shard].tensors);
        if (done) continue;
        const std::scoped_lock lock(mutex);
        if (result) result = std::move(done);
        next = shards.size();
      }
      --running;
    });
  }
  Progress progress(console, "writing", ProgressUnit::kBytes);
  while (running.load() > 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    progress.update(written.load(), total);
  }
  workers.clear();
  TRY(result);
  if (cancel_flag().load()) return fail(ErrorCode::kInterrupted, "interrupted; the unfinished checkpoint is removed");
  return {};
}

Result<Json> wanted_config(const SynthOptions& options) {
  Json config;
  if (options.config_file) {
    TRY_ASSIGN(const std::string text, checkpoint::read_whole_file(*options.config_file, 16_MiB));
    TRY_ASSIGN(config, parse_json(text, *options.config_file));
    if (!config.is_object())
      return fail(ErrorCode::kBadInput, format("{}: expected a JSON object", *options.config_file));
  } else {
    TRY_ASSIGN(config, named_config(options.name));
  }
  if (options.layers) config.set("num_hidden_layers", *options.layers);
  const char* dtype = options.dtype == DType::kBF16 ? "bfloat16" : options.dtype == DType::kF16 ? "float16" : "float32";
  // Old spelling, new spelling, or both.
  if (config.find("torch_dtype") != nullptr) config.set("torch_dtype", dtype);
  if (config.find("dtype") != nullptr || config.find("torch_dtype") == nullptr) config.set("dtype", dtype);
  return config;
}

Result<void> prepare_directory(const std::filesystem::path& directory, int64_t bytes) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  const bool empty = !error && std::filesystem::is_empty(directory, error);
  if (error) {
    const bool refused = error == std::errc::permission_denied || error == std::errc::read_only_file_system;
    return fail(refused ? ErrorCode::kPermission : ErrorCode::kRuntime,
                format("{}: cannot make this directory: {}", directory.string(), error.message()));
  }
  if (!empty) return fail(ErrorCode::kUsage, format("{} is not empty; nothing is overwritten", directory.string()));
  const std::filesystem::space_info space = std::filesystem::space(directory, error);
  if (!error && static_cast<int64_t>(space.available) < bytes) {
    return fail(ErrorCode::kRuntime,
                format("{}: the checkpoint needs {} and the file system has {} left", directory.string(),
                       format_bytes(bytes), format_bytes(static_cast<int64_t>(space.available))));
  }
  return {};
}

Result<void> copy_tokenizer(const std::filesystem::path& from, const std::filesystem::path& to) {
  for (const char* file : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}) {
    if (!std::filesystem::exists(from / file)) continue;
    TRY_ASSIGN(const std::string text, checkpoint::read_whole_file(from / file, kMaxTextBytes));
    TRY(write_text(to / file, text));
  }
  return {};
}

std::string index_text(const std::vector<Shard>& shards, int64_t total) {
  Json map{Json::Object{}}, metadata, index;
  for (const Shard& shard : shards)
    for (const checkpoint::TensorSource& tensor : shard.tensors) map.as_object().emplace_back(tensor.name, shard.file);
  metadata.set("total_size", total);
  index.set("metadata", std::move(metadata));
  index.set("weight_map", std::move(map));
  return to_json_text(index, 2) + "\n";
}

template <typename Bits>
Result<int> write_checkpoint(const SynthOptions& options, const Json& config,
                             const std::vector<model::TensorSpec>& tensors, const Generator<Bits>& generator) {
  Console console(options.console);
  std::atomic<int64_t> written{0};
  const std::vector<Shard> shards = make_shards(tensors, options, generator, written);
  int64_t total = 0;
  for (const Shard& shard : shards) total += shard.bytes;
  const std::filesystem::path directory = options.output;
  TRY(prepare_directory(directory, total));

  const auto started = std::chrono::steady_clock::now();
  const int cpus = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const int threads = std::min<int>(options.threads > 0 ? options.threads : cpus, static_cast<int>(shards.size()));
  const auto write_all = [&]() -> Result<void> {
    TRY(write_shards(directory, shards, threads, written, total, console));
    if (options.tokenizer) TRY(copy_tokenizer(*options.tokenizer, directory));
    if (shards.size() > 1) TRY(write_text(directory / "model.safetensors.index.json", index_text(shards, total)));
    return write_text(directory / "config.json", to_json_text(config, 2) + "\n");  // last: without it this is no model
  };
  if (const Result<void> done = write_all(); !done) {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(directory, ignored))
      std::filesystem::remove(entry.path(), ignored);
    return std::unexpected(done.error());
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  console.line(format("{}: {} tensors, {} in {} file{}, {:.1f} s, {}/s", directory.string(), tensors.size(),
                      format_bytes(total), shards.size(), shards.size() == 1 ? "" : "s", seconds,
                      format_bytes(static_cast<int64_t>(static_cast<double>(total) / std::max(seconds, 1e-9)))));
  return kExitOk;
}

}  // namespace

Result<int> synth_command(const SynthOptions& options) {
  TRY_ASSIGN(const Json config, wanted_config(options));
  TRY_ASSIGN(const model::ModelConfig parsed, model::parse_model_config(config));
  TRY_ASSIGN(const std::unique_ptr<model::Model> model, model::create_model(parsed, model::Placement::even(1)));
  if (options.tokenizer) {
    TRY_ASSIGN(const checkpoint::Tokenizer tokenizer, checkpoint::Tokenizer::open(*options.tokenizer));
    if (tokenizer.id_limit() > parsed.vocab) {
      return fail(ErrorCode::kUsage, format("{}: token ids up to {}, but the model's vocabulary has {}",
                                            *options.tokenizer, tokenizer.id_limit() - 1, parsed.vocab));
    }
  }
  const std::vector<model::TensorSpec> tensors = list_tensors(*model);
  switch (options.dtype) {
    case DType::kBF16:
      return write_checkpoint(options, config, tensors, Generator<uint16_t>([](float x) { return to_bf16(x).bits; }));
    case DType::kF16: return write_checkpoint(options, config, tensors, Generator<uint16_t>(half_bits));
    case DType::kF32: return write_checkpoint(options, config, tensors, Generator<float>([](float x) { return x; }));
  }
  return fail(ErrorCode::kInternal, "a data type without a generator");
}

}  // namespace cpuinfer::tools
