#include "engine/load/expert_usage.h"

#include <doctest/doctest.h>

#include <fstream>
#include <iterator>
#include <string>

#include "base/json.h"
#include "tests/engine/checkpoint/temporary_directory.h"

using namespace cpuinfer;
using namespace cpuinfer::load;
using checkpoint::TemporaryDirectory;

namespace {

// Three layers of four experts, the second of them dense.
model::ModelConfig small_config() {
  const auto json = parse_json(R"({"architectures":["Qwen3MoeForCausalLM"],"hidden_size":32,"num_hidden_layers":3,
    "num_attention_heads":2,"num_key_value_heads":1,"head_dim":16,"vocab_size":64,"intermediate_size":32,
    "num_experts":4,"num_experts_per_tok":2,"moe_intermediate_size":16,"norm_topk_prob":true,"mlp_only_layers":[1],
    "tie_word_embeddings":false,"max_position_embeddings":4096,"rope_theta":10000.0})",
                               "config");
  REQUIRE(json);
  const auto config = model::parse_model_config(*json);
  REQUIRE_MESSAGE(config, (config ? "" : config.error().message));
  return *config;
}

}  // namespace

TEST_CASE("what is written is read again, and nothing else is left") {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory.path() / "usage.json";
  const std::vector<std::vector<double>> usage = {{3, 0, 1.5, 1e12}, {}, {0, 0, 0, 7}};
  for (int times = 0; times < 2; ++times) REQUIRE(write_expert_usage(path, usage));  // the second replaces the first
  const auto read = read_expert_usage(path, small_config());
  REQUIRE_MESSAGE(read, (read ? "" : read.error().message));
  CHECK(*read == usage);
  std::ifstream file(path);
  CHECK(std::string(std::istreambuf_iterator<char>(file), {}) ==
        "{\"layers\":[[3,0,1.5,1000000000000],[],[0,0,0,7]]}\n");
  CHECK(std::distance(std::filesystem::directory_iterator(directory.path()), {}) == 1);

  const auto nowhere = write_expert_usage(directory.path() / "no" / "usage.json", usage);
  REQUIRE_FALSE(nowhere);
  CHECK(nowhere.error().code == ErrorCode::kNotFound);
  CHECK(nowhere.error().message.ends_with(
      "/no/usage.json: cannot create a temporary file beside it: No such file or directory"));
  std::filesystem::create_directory(directory.path() / "taken");
  const auto taken = write_expert_usage(directory.path() / "taken", usage);
  REQUIRE_FALSE(taken);
  CHECK(taken.error().message.ends_with("/taken: cannot write: Is a directory"));
  CHECK(std::distance(std::filesystem::directory_iterator(directory.path()), {}) == 2);
}

TEST_CASE("files that do not belong to the model are refused") {
  const TemporaryDirectory directory;
  const auto error = [&](const char* text, ErrorCode code = ErrorCode::kBadInput) {
    const std::filesystem::path path = directory.write("u.json", text);
    const auto usage = read_expert_usage(path, small_config());
    REQUIRE_FALSE(usage);
    CHECK(usage.error().code == code);
    const std::string message = usage.error().message;
    REQUIRE(message.starts_with(path.string() + ":"));
    return message.substr(path.string().size() + 2);
  };
  CHECK(error("[]") == "expected {\"layers\": [[a count for each expert], ...]}, found no \"layers\"");
  CHECK(error(R"({"layers": 3})") ==
        "expected {\"layers\": [[a count for each expert], ...]}, found \"layers\" that is integer");
  CHECK(error(R"({"layers": [[1,2,3,4]]})") ==
        "\"layers\" has 1 lists and the model 3 layers; it was made with another model");
  CHECK(error(R"({"layers": [[1,2,3,4], 7, [1,2,3,4]]})") == "layer 1: expected a list of counts, found integer");
  CHECK(error(R"({"layers": [[1,2,3,4], [1,2,3,4], [1,2,3,4]]})") ==
        "layer 1 has 4 counts and the model 0 experts there; it was made with another model");
  CHECK(error(R"({"layers": [[1,2,3], [], [1,2,3,4]]})") ==
        "layer 0 has 3 counts and the model 4 experts there; it was made with another model");
  CHECK(error(R"({"layers": [[1,2,3,-4], [], [1,2,3,4]]})") ==
        "layer 0, expert 3: the count is -4; it must be a number, 0 or more");
  CHECK(error(R"({"layers": [[1,2,3,4], [], [1,"2",3,4]]})") ==
        "layer 2, expert 1: the count is \"2\"; it must be a number, 0 or more");
  CHECK(error(R"({"layers": [[1,2,3,null], [], [1,2,3,4]]})") ==
        "layer 0, expert 3: the count is null; it must be a number, 0 or more");
  error(R"({"layers": [[1,2,3,1e999], [], [1,2,3,4]]})");
  error("{\"layers\": [[1,2");
  error("");
  const auto missing = read_expert_usage(directory.path() / "missing.json", small_config());
  REQUIRE_FALSE(missing);
  CHECK(missing.error().code == ErrorCode::kNotFound);
}
