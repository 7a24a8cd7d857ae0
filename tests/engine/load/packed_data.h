// A packed model directory of random weights.
#pragma once

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "engine/checkpoint/checkpoint.h"
#include "engine/load/pack.h"
#include "engine/load/synthetic.h"
#include "tests/engine/checkpoint/temporary_directory.h"

namespace cpuinfer::load {

/// config.json and weights.packed of a synthetic model, removed at the end.
class PackedDirectory {
 public:
  explicit PackedDirectory(const std::string& config_text, uint64_t seed = 1) {
    directory_.write("config.json", config_text);
    const auto config = model::parse_model_config(*parse_json(config_text, "config"));
    REQUIRE_MESSAGE(config, (config ? "" : config.error().message));
    const auto model = model::create_model(*config, model::Placement::even(1));
    REQUIRE(model);
    const auto topology = numa::Topology::detect();
    REQUIRE(topology);
    const auto team = numa::Team::create(*topology, {.threads = 2, .nodes = 1});
    REQUIRE(team);
    const SyntheticWeights weights(**model, seed);
    const LoadOptions options;
    const auto packed = write_packed(
        **model, [&](std::span<const model::WeightSpec> specs) { return weights.fill(specs, **team, options); }, file(),
        **team, *topology);
    REQUIRE_MESSAGE(packed, (packed ? "" : packed.error().message));
    statistics_ = *packed;
  }

  const std::filesystem::path& path() const { return directory_.path(); }
  std::filesystem::path file() const { return path() / checkpoint::kPackedName; }
  const PackStatistics& statistics() const { return statistics_; }

  std::string read() const {
    std::ifstream stream(file(), std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  void write(const std::string& bytes) const { std::ofstream(file(), std::ios::binary) << bytes; }
  /// Changes a byte of the file.
  void flip(int64_t offset) const {
    std::fstream stream(file(), std::ios::binary | std::ios::in | std::ios::out);
    stream.seekg(offset);
    const char byte = static_cast<char>(stream.get() ^ 1);
    stream.seekp(offset);
    stream.put(byte);
    REQUIRE(stream.good());
  }

 private:
  checkpoint::TemporaryDirectory directory_;
  PackStatistics statistics_;
};

}  // namespace cpuinfer::load
