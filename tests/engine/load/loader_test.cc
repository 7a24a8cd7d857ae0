#include "engine/load/loader.h"

#include "base/log.h"
#include "tests/engine/load/loader_data.h"

using namespace cpuinfer;
using namespace cpuinfer::load;

namespace {

std::string load_error(const Directory& directory) {
  const auto loaded = load_all(directory);
  REQUIRE_FALSE(loaded);
  return loaded.error().message;
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
  auto model = model::create_model(*config, model::Placement::even(1));
  const auto topology = numa::Topology::detect();
  const auto team = numa::Team::create(*topology, {.threads = 2, .nodes = 1});
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
  CHECK(check_tensors(**model::create_model(*config, model::Placement::even(1)), *checkpoint));
  CHECK(warnings.empty());
  config->layers = 0;
  config->moe_layers.clear();
  CHECK(check_tensors(**model::create_model(*config, model::Placement::even(1)), *checkpoint));
  set_log_sink({});
  REQUIRE(warnings.size() == 1);
  CHECK(warnings[0].find("tensors of the checkpoint are not part of the model and are ignored") != std::string::npos);
}
