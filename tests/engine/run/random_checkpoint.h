// A checkpoint with random weights in a temporary folder.
#pragma once

#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "base/format.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/model/model.h"

namespace cpuinfer::run {

/// Made of a config.json; removed at the end. Weights are uniform around 0 with the variance 1 / terms, norm weights
/// around 1.
class TemporaryCheckpoint {
 public:
  explicit TemporaryCheckpoint(const std::string& config_text, uint32_t seed = 1) {
    static int count = 0;
    path_ = std::filesystem::temp_directory_path() / format("cpuinfer_test_{}_{}", getpid(), count++);
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
    std::ofstream(path_ / "config.json") << config_text;
    const auto json = parse_json(config_text, "config");
    REQUIRE(json);
    const auto config = model::parse_model_config(*json);
    REQUIRE_MESSAGE(config, (config ? "" : config.error().message));
    const auto model = model::create_model(*config, model::Placement::even(1));
    REQUIRE(model);

    std::mt19937 random(seed);
    std::vector<model::TensorSpec> tensors;
    std::vector<std::vector<bf16>> data;
    (*model)->visit_weights([&](const model::WeightSpec& spec) {
      for (const model::TensorSpec& tensor : spec.tensors) {
        const bool matrix = tensor.shape.size() == 2;
        const float scale = matrix ? std::sqrt(3.0f / static_cast<float>(tensor.shape[1])) : 0.3f;
        const float middle = tensor.name.ends_with("norm.weight") ? 1.0f : 0.0f;
        std::vector<bf16> values(tensor.shape[0] * (matrix ? tensor.shape[1] : 1));
        for (bf16& value : values) value = to_bf16(middle + scale * (static_cast<float>(random()) * 0x1p-31f - 1.0f));
        tensors.push_back(tensor);
        data.push_back(std::move(values));
      }
    });
    std::vector<checkpoint::TensorSource> sources;
    for (size_t i = 0; i < tensors.size(); ++i) {
      sources.push_back(checkpoint::tensor_from_bytes(tensors[i].name, DType::kBF16, tensors[i].shape,
                                                      std::as_bytes(std::span(data[i]))));
    }
    const auto written = checkpoint::write_safetensors(path_ / "model.safetensors", sources);
    REQUIRE_MESSAGE(written, (written ? "" : written.error().message));
  }
  TemporaryCheckpoint(const TemporaryCheckpoint&) = delete;
  TemporaryCheckpoint& operator=(const TemporaryCheckpoint&) = delete;
  ~TemporaryCheckpoint() { std::filesystem::remove_all(path_); }

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace cpuinfer::run
