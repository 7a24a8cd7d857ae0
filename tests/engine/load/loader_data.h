// A checkpoint on disk whose numbers tell where they belong, and the ways of tests to load it.
#pragma once

#include <doctest/doctest.h>
#include <unistd.h>

#include <bit>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/format.h"
#include "engine/load/loader.h"

namespace cpuinfer::load {

inline constexpr const char* kConfig = R"({"architectures":["Qwen3MoeForCausalLM"],"hidden_size":24,
  "num_hidden_layers":1,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":8,"vocab_size":50,
  "intermediate_size":40,"num_experts":3,"num_experts_per_tok":2,"moe_intermediate_size":12,
  "norm_topk_prob":true,"rms_norm_eps":1e-6,"tie_word_embeddings":false,"max_position_embeddings":64,
  "rope_theta":10000.0,"torch_dtype":"bfloat16"})";

// Element i of a tensor is a small number that tells tensor and index apart and is exact in bf16.
inline float value_of(size_t tensor, size_t i) {
  return static_cast<float>(static_cast<int>((tensor * 37 + i) % 251) - 125);
}

// The same number as IEEE binary16.
inline uint16_t half_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (value == 0) return 0;
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | ((bits >> 13 & 0x3ffff) - (112 << 10)));
}

// A model directory in a fresh temporary folder, removed at the end.
class Directory {
 public:
  explicit Directory(std::string config = kConfig)
      : config_(std::move(config)),
        path_(std::filesystem::temp_directory_path() / format("cpuinfer_loader_test_{}", getpid())) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
    std::ofstream(path_ / "config.json") << config_;
  }
  ~Directory() { std::filesystem::remove_all(path_); }

  // Every tensor of the model, as `change` leaves it.
  void write(DType dtype, const std::function<void(model::TensorSpec&, DType&)>& change = {}) {
    std::vector<checkpoint::TensorSource> sources;
    std::deque<std::vector<std::byte>> data;  // a view of each goes to the writer
    const auto config = model::parse_model_config(*parse_json(config_, "config"));
    REQUIRE_MESSAGE(config, (config ? "" : config.error().message));
    auto model = model::create_model(*config, model::Placement::even(1));
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
          } else if (type == DType::kF16) {
            const uint16_t half = half_bits(value);
            std::memcpy(bytes.data() + i * 2, &half, 2);
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
  std::string config_;
  std::filesystem::path path_;
  std::map<std::string, size_t> numbers_;
};

struct Loaded {
  std::unique_ptr<model::Model> model;
  WeightMemory memory;
};

inline Result<Loaded> load_all(const Directory& directory, int nodes = 1, int threads = 2,
                               const LoadOptions& options = {}) {
  TRY_ASSIGN(const checkpoint::Checkpoint checkpoint, checkpoint::Checkpoint::open(directory.path()));
  TRY_ASSIGN(const model::ModelConfig config, model::parse_model_config(checkpoint.config()));
  Loaded loaded;
  TRY_ASSIGN(loaded.model, model::create_model(config, model::Placement::even(nodes)));
  TRY(check_tensors(*loaded.model, checkpoint));
  TRY_ASSIGN(const numa::Topology topology, numa::Topology::detect());
  TRY_ASSIGN(const std::unique_ptr<numa::Team> team,
             numa::Team::create(topology, {.threads = threads, .nodes = nodes}));
  TRY_ASSIGN(loaded.memory, load_weights(*loaded.model, checkpoint, *team, topology, options));
  return loaded;
}

// Bytes of the files that `nodes` nodes read: each what it has a copy of.
inline int64_t read_bytes(model::Model& model, DType dtype) {
  int64_t bytes = 0;
  model.visit_weights([&](const model::WeightSpec& spec) {
    const int copies = spec.matrix != nullptr && spec.matrix->split().is_replicated() ? spec.matrix->nodes() : 1;
    for (const model::TensorSpec& tensor : spec.tensors) {
      int64_t elements = copies;
      for (const int64_t size : tensor.shape) elements *= size;
      bytes += elements * dtype_bytes(dtype);
    }
  });
  return bytes;
}

// Reads every output of every matrix back and compares it with the row of the tensor that it must come from.
inline void check_weights(const Directory& directory, model::Model& model) {
  int outputs = 0;
  model.visit_weights([&](const model::WeightSpec& spec) {
    int output = 0;
    const int rows = static_cast<int>(spec.tensors[0].shape[0]);
    const std::vector<model::RowRun> whole = {{0, 0, rows, 0}};
    for (const model::RowRun& run : spec.outputs.empty() ? std::span<const model::RowRun>(whole) : spec.outputs) {
      CHECK(run.output == output);
      for (int row = run.first; row < run.first + run.count; ++row, ++output) {
        if (spec.vector != nullptr) {
          for (int node = 0; node < spec.vector->nodes(); ++node)
            CHECK(spec.vector->on(node)[static_cast<size_t>(output)] ==
                  directory.expected(spec.tensors[run.tensor].name, row));
          continue;
        }
        const model::PackedMatrix& matrix = *spec.matrix;
        if (output == 0 && matrix.split().is_replicated())
          for (int node = 1; node < matrix.nodes(); ++node)
            CHECK(std::memcmp(matrix.unit(node, 0, 0), matrix.unit(0, 0, 0), matrix.shard_bytes(0)) == 0);
        const int terms = matrix.terms();
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

}  // namespace cpuinfer::load
