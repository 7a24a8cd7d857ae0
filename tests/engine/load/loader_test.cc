#include "engine/load/loader.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

#include "base/format.h"
#include "base/log.h"

using namespace cpuinfer;
using namespace cpuinfer::load;

namespace {

constexpr const char* kConfig = R"({"architectures":["Qwen3MoeForCausalLM"],"hidden_size":24,
  "num_hidden_layers":1,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":8,"vocab_size":50,
  "intermediate_size":40,"num_experts":3,"num_experts_per_tok":2,"moe_intermediate_size":12,
  "norm_topk_prob":true,"rms_norm_eps":1e-6,"tie_word_embeddings":false,"max_position_embeddings":64,
  "rope_theta":10000.0,"torch_dtype":"bfloat16"})";

// Element i of a tensor is a small number that tells tensor and index apart and is exact in bf16.
float value_of(size_t tensor, size_t i) { return static_cast<float>(static_cast<int>((tensor * 37 + i) % 251) - 125); }

// A model directory in a fresh temporary folder, removed at the end.
class Directory {
 public:
  Directory() : path_(std::filesystem::temp_directory_path() / format("cpuinfer_loader_test_{}", getpid())) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
    std::ofstream(path_ / "config.json") << kConfig;
  }
  ~Directory() { std::filesystem::remove_all(path_); }

  // Every tensor of the model, as `change` leaves it.
  void write(DType dtype, const std::function<void(model::TensorSpec&, DType&)>& change = {}) {
    std::vector<checkpoint::TensorSource> sources;
    std::vector<std::vector<std::byte>> data;
    data.reserve(100);
    const auto config = model::parse_model_config(*parse_json(kConfig, "config"));
    auto model = model::create_model(*config, 1);
    (*model)->visit_weights([&](const model::WeightSpec& spec) {
      for (model::TensorSpec tensor : spec.tensors) {
        DType type = dtype;
        if (change) change(tensor, type);
        if (tensor.name.empty()) continue;
        int64_t elements = 1;
        for (const int64_t dimension : tensor.shape) elements *= dimension;
        std::vector<std::byte>& bytes = data.emplace_back(elements * dtype_bytes(type));
        for (int64_t i = 0; i < elements; ++i) {
          const float value = value_of(numbers_.size(), i);
          if (type == DType::kF32) {
            std::memcpy(bytes.data() + i * 4, &value, 4);
          } else {
            const bf16 half = to_bf16(value);
            std::memcpy(bytes.data() + i * 2, &half, 2);
          }
        }
        numbers_[tensor.name] = numbers_.size();
        sources.push_back(checkpoint::tensor_from_bytes(tensor.name, type, tensor.shape, bytes));
      }
    });
    const auto written = checkpoint::write_safetensors(path_ / "model.safetensors", sources);
    REQUIRE_MESSAGE(written, (written ? "" : written.error().message));
  }

  const std::filesystem::path& path() const { return path_; }
  float expected(const std::string& tensor, int64_t i) const { return value_of(numbers_.at(tensor), i); }

 private:
  std::filesystem::path path_;
  std::map<std::string, size_t> numbers_;
};

struct Loaded {
  std::unique_ptr<model::Model> model;
  WeightMemory memory;
};

Result<Loaded> load_all(const Directory& directory, int nodes = 1, int threads = 2, const LoadOptions& options = {}) {
  TRY_ASSIGN(const checkpoint::Checkpoint checkpoint, checkpoint::Checkpoint::open(directory.path()));
  TRY_ASSIGN(const model::ModelConfig config, model::parse_model_config(checkpoint.config()));
  Loaded loaded;
  TRY_ASSIGN(loaded.model, model::create_model(config, nodes));
  TRY(check_tensors(*loaded.model, checkpoint));
  TRY_ASSIGN(const numa::Topology topology, numa::Topology::detect());
  TRY_ASSIGN(const std::unique_ptr<numa::Team> team, numa::Team::create(topology, threads, nodes));
  TRY_ASSIGN(loaded.memory, load_weights(*loaded.model, checkpoint, *team, topology, options));
  return loaded;
}

std::string load_error(const Directory& directory) {
  const auto loaded = load_all(directory);
  REQUIRE_FALSE(loaded);
  return loaded.error().message;
}

// Reads every output of every matrix back and compares it with the row of the tensor that it must come from.
void check_weights(const Directory& directory, model::Model& model) {
  int outputs = 0;
  model.visit_weights([&](const model::WeightSpec& spec) {
    int output = 0;
    const int rows = static_cast<int>(spec.tensors[0].shape[0]);
    const std::vector<model::RowRun> whole = {{0, 0, rows, 0}};
    for (const model::RowRun& run : spec.outputs.empty() ? std::span<const model::RowRun>(whole) : spec.outputs) {
      CHECK(run.output == output);
      for (int row = run.first; row < run.first + run.count; ++row, ++output) {
        if (spec.vector != nullptr) {
          CHECK(spec.vector->at(output) == directory.expected(spec.tensors[run.tensor].name, row));
          continue;
        }
        const int terms = spec.matrix->terms();
        std::vector<bf16> values(terms);
        spec.matrix->read_output(output, values.data());
        for (int k = 0; k < terms; ++k) {
          const float expected =
              run.tensor < 0 ? 0 : directory.expected(spec.tensors[run.tensor].name, int64_t{row} * terms + k);
          REQUIRE(to_float(values[k]) == expected);
        }
        ++outputs;
      }
    }
  });
  CHECK(outputs > 300);
}

}  // namespace

TEST_CASE("every weight arrives where it belongs, on one node and on three") {
  Directory directory;
  directory.write(DType::kBF16);
  for (const int nodes : {1, 3}) {
    const auto loaded = load_all(directory, nodes, 2 * nodes);
    REQUIRE_MESSAGE(loaded, (loaded ? "" : loaded.error().message));
    CHECK(static_cast<int>(loaded->memory.size()) == nodes);
    check_weights(directory, *loaded->model);
  }
}

TEST_CASE("float32 weights are rounded to bf16 with one warning") {
  Directory directory;
  directory.write(DType::kF32);
  std::vector<std::string> warnings;
  set_log_sink([&](LogLevel, std::string_view line) { warnings.emplace_back(line); });
  const auto loaded = load_all(directory);
  set_log_sink({});
  REQUIRE(loaded);
  check_weights(directory, *loaded->model);
  REQUIRE(warnings.size() == 1);
  CHECK(warnings[0].find("F32 tensors are rounded to bf16: 8 bits of precision are kept") != std::string::npos);
}

TEST_CASE("a missing tensor is named with its shape") {
  Directory directory;
  directory.write(DType::kBF16, [](model::TensorSpec& tensor, DType&) {
    if (tensor.name == "model.layers.0.mlp.experts.1.up_proj.weight") tensor.name.clear();
  });
  CHECK(load_error(directory).ends_with("tensor 'model.layers.0.mlp.experts.1.up_proj.weight' [12, 24] is missing"));
}

TEST_CASE("a wrong shape is named, expected against found") {
  Directory directory;
  directory.write(DType::kBF16, [](model::TensorSpec& tensor, DType&) {
    if (tensor.name == "model.layers.0.mlp.gate.weight") tensor.shape = {24, 3};
  });
  CHECK(load_error(directory).ends_with(
      "'model.layers.0.mlp.gate.weight': expected [3, 24] by config.json, file has [24, 3]"));
}

TEST_CASE("one matrix from tensors of two types is refused") {
  Directory directory;
  directory.write(DType::kBF16, [](model::TensorSpec& tensor, DType& dtype) {
    if (tensor.name == "model.layers.0.self_attn.k_proj.weight") dtype = DType::kF32;
  });
  CHECK(load_error(directory).find("'model.layers.0.self_attn.q_proj.weight' is BF16 and "
                                   "'model.layers.0.self_attn.k_proj.weight' is F32") != std::string::npos);
}

TEST_CASE("a file that shrinks between check and load is an error, not a crash") {
  Directory directory;
  directory.write(DType::kBF16);
  const auto checkpoint = checkpoint::Checkpoint::open(directory.path());
  REQUIRE(checkpoint);
  std::filesystem::resize_file(directory.path() / "model.safetensors",
                               std::filesystem::file_size(directory.path() / "model.safetensors") - 200);
  const auto config = model::parse_model_config(checkpoint->config());
  auto model = model::create_model(*config, 1);
  const auto topology = numa::Topology::detect();
  const auto team = numa::Team::create(*topology, 2, 1);
  const auto loaded = load_weights(**model, *checkpoint, **team, *topology);
  REQUIRE_FALSE(loaded);
  CHECK(loaded.error().code == ErrorCode::kRuntime);
  CHECK(loaded.error().message.find("the file has become shorter") != std::string::npos);
}

TEST_CASE("loading reports its progress and stops when it is told to") {
  Directory directory;
  directory.write(DType::kBF16);
  int64_t last = 0, total = 0;
  LoadOptions options;
  options.progress = [&](int64_t done_bytes, int64_t total_bytes) {
    CHECK(done_bytes >= last);
    last = done_bytes;
    total = total_bytes;
  };
  REQUIRE(load_all(directory, 1, 1, options));
  CHECK(last == total);
  CHECK(total > 0);

  options.progress = nullptr;
  const std::atomic<bool> cancel = true;
  options.cancel = &cancel;
  const auto stopped = load_all(directory, 1, 2, options);
  REQUIRE_FALSE(stopped);
  CHECK(stopped.error().code == ErrorCode::kInterrupted);
}

TEST_CASE("tensors that the model does not have are one warning, a copy of a tied embedding none") {
  Directory directory;
  directory.write(DType::kBF16);
  std::vector<std::string> warnings;
  set_log_sink([&](LogLevel, std::string_view line) { warnings.emplace_back(line); });
  const auto checkpoint = checkpoint::Checkpoint::open(directory.path());
  auto config = model::parse_model_config(checkpoint->config());
  config->tied_embeddings = true;
  CHECK(check_tensors(**model::create_model(*config, 1), *checkpoint));
  CHECK(warnings.empty());
  config->layers = 0;
  config->moe_layers.clear();
  CHECK(check_tensors(**model::create_model(*config, 1), *checkpoint));
  set_log_sink({});
  REQUIRE(warnings.size() == 1);
  CHECK(warnings[0].find("tensors of the checkpoint are not part of the model and are ignored") != std::string::npos);
}
