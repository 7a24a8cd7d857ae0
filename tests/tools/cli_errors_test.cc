// What a user can do wrong, and what cpuinfer says and returns.
#include <doctest/doctest.h>

#include <cstring>

#include "base/format.h"
#include "base/types.h"
#include "engine/checkpoint/checkpoint.h"
#include "tests/tools/process.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;

namespace {

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

// Runs a prompt; the run must fail with this code and say all of these, to stderr alone.
void expect_error(const Arguments& arguments, int code, const std::vector<std::string>& sentences,
                  const ProcessOptions& options = {}) {
  const Outcome outcome = run_cpuinfer(arguments, options);
  INFO(outcome.err);
  CHECK(outcome.exit_code == code);
  CHECK_FALSE(outcome.killed_by_signal);
  CHECK(outcome.out.empty());
  CHECK(contains(outcome.err, "cpuinfer: "));
  for (const std::string& sentence : sentences) CHECK_MESSAGE(contains(outcome.err, sentence), sentence);
}

Arguments prompt(const std::string& model, Arguments rest = {}) {
  Arguments all = {"-m", model, "--prompt", "Hello", "-n", "4"};
  all.insert(all.end(), rest.begin(), rest.end());
  return all;
}

std::filesystem::path copy_of_tiny(const char* name) {
  const std::filesystem::path copy = scratch_directory() / name;
  std::filesystem::copy(tiny_model(), copy);
  return copy;
}

void replace_in(const std::filesystem::path& file, const std::string& what, const std::string& by) {
  std::string text = read_file(file);
  const size_t at = text.find(what);
  REQUIRE(at != std::string::npos);
  write_file(file, text.replace(at, what.size(), by));
}

// Sets the first element of a tensor to NaN.
void break_tensor(const std::filesystem::path& model, const char* tensor) {
  int64_t offset = 0;
  {
    const auto checkpoint = checkpoint::Checkpoint::open(model);
    REQUIRE(checkpoint.has_value());
    REQUIRE(checkpoint->find(tensor) != nullptr);
    offset = checkpoint->find(tensor)->file_offset;
  }
  std::string bytes = read_file(model / "model.safetensors");
  bytes[static_cast<size_t>(offset)] = '\xc0';
  bytes[static_cast<size_t>(offset) + 1] = '\x7f';
  write_file(model / "model.safetensors", bytes);
}

}  // namespace

TEST_CASE("no such model") {
  expect_error(prompt("/nonexistent/model"), 66, {"/nonexistent/model"});
  ProcessOptions options;
  options.environment = {{"CPUINFER_MODELS", std::filesystem::path(tiny_model()).parent_path().string()}};
  // The places searched and a close name.
  expect_error(prompt("tinny"), 66, {"tinny", "/var/lib/cpuinfer/models"});
  expect_error(prompt("tinny"), 66, {"tinny", "tiny"}, options);
}

TEST_CASE("a directory that is no model") {
  const auto empty = scratch_directory() / "empty";
  std::filesystem::create_directory(empty);
  expect_error(prompt(empty.string()), 66, {"config.json"});
  const auto no_tokenizer = copy_of_tiny("no_tokenizer");
  std::filesystem::remove(no_tokenizer / "tokenizer.json");
  expect_error(prompt(no_tokenizer.string()), 66, {"tokenizer.json"});
}

TEST_CASE("an unreadable model") {
  const auto model = copy_of_tiny("unreadable");
  std::filesystem::permissions(model / "model.safetensors", std::filesystem::perms::none);
  if (FILE* file = std::fopen((model / "model.safetensors").c_str(), "rb")) {
    std::fclose(file);
    MESSAGE("skipped: this user may read everything (root)");
    return;
  }
  expect_error(prompt(model.string()), 66, {"model.safetensors"});
}

TEST_CASE("another architecture") {
  const auto model = copy_of_tiny("llama");
  replace_in(model / "config.json", "Qwen3MoeForCausalLM", "LlamaForCausalLM");
  expect_error(prompt(model.string()), 78, {"LlamaForCausalLM", "Qwen3"});
}

TEST_CASE("a broken config") {
  const auto model = copy_of_tiny("broken_config");
  write_file(model / "config.json", "{\"hidden_size\": 64,");
  expect_error(prompt(model.string()), 78, {"config.json"});
}

TEST_CASE("a truncated shard") {
  const auto model = copy_of_tiny("truncated");
  std::filesystem::resize_file(model / "model.safetensors",
                               std::filesystem::file_size(model / "model.safetensors") - 10);
  expect_error(prompt(model.string()), 78, {"model.safetensors"});
  std::filesystem::resize_file(model / "model.safetensors", 4);
  expect_error(prompt(model.string()), 78, {"model.safetensors"});
}

TEST_CASE("a config that does not fit the tensors") {
  const auto model = copy_of_tiny("wrong_shape");
  replace_in(model / "config.json", "\"moe_intermediate_size\": 32", "\"moe_intermediate_size\": 48");
  expect_error(prompt(model.string()), 78, {"mlp.experts.0."});
}

TEST_CASE("NaN weights") {
  const auto model = copy_of_tiny("nan");
  break_tensor(model, "model.norm.weight");
  expect_error(prompt(model.string()), 78, {"is NaN: the weights of this checkpoint are broken"});

  ProcessOptions options;
  options.input = "Some text to score";
  const Outcome scored = run_cpuinfer({"score", "-m", model.string(), "--json"}, options);
  CHECK(scored.exit_code == 1);
  CHECK(contains(scored.err, "cpuinfer: first NaN at token 0: the weights of this checkpoint are broken"));
  CHECK(contains(scored.out, "\"first_nan_token\": 0"));
  CHECK(contains(scored.out, "\"nll\": null"));
  CHECK(contains(scored.out, "\"perplexity\": null"));
}

TEST_CASE("a context over the limit names the scaling that would allow it") {
  expect_error(prompt(tiny_model(), {"--ctx", "8192"}), 2,
               {"--ctx 8192 is over the 4096 positions", "--rope-scaling auto would choose YaRN",
                "yarn:2:4096, which reaches 8192"});
  expect_error(prompt(tiny_model(), {"--ctx", "1M"}), 2, {"no rope scaling that is known to work reaches that far"});
}

TEST_CASE("a prompt longer than the context") {
  std::string text;
  for (int i = 0; i < 300; ++i) text += "word " + std::to_string(i) + " ";
  expect_error({"-m", tiny_model(), "--ctx", "64", "--prompt", text}, 2,
               {"the prompt has ", "and the context 64: no room for an answer"});
  // Known before it is tokenized.
  const auto file = scratch_directory() / "long.txt";
  write_file(file, std::string(2'000'000, 'x'));
  expect_error({"-m", tiny_model(), "--ctx", "64", "--prompt-file", file.string()}, 2,
               {"the prompt has 2000000 bytes, and 64 tokens of context stand for ",
                " at the most; shorten the prompt or raise --ctx"});
  const Outcome scored = pipe_cpuinfer(text, {"score", "-m", tiny_model(), "--ctx", "64"});
  CHECK(scored.exit_code == 2);
  CHECK(contains(scored.err, "and the context 64; shorten the text or raise --ctx"));
}

TEST_CASE("empty prompts") {
  expect_error({"-m", tiny_model(), "--raw", "--prompt", ""}, 2, {"the prompt is empty"});
  expect_error({"score", "-m", tiny_model()}, 2, {"the text is empty"});
}

TEST_CASE("experts over their number") {
  expect_error(prompt(tiny_model(), {"--experts", "9"}), 2,
               {"--experts is 9; this model has 8 experts, so it must be between 1 and 8"});
  expect_error(prompt(tiny_model(), {"--experts", "0"}), 2,
               {"--experts is '0'; it must be a whole number between 1 and"});
}

TEST_CASE("not enough memory says so before loading, with the table") {
  expect_error(prompt(tiny_model(), {"--memory-limit", "1MiB"}), 78,
               {"not enough memory, nothing was loaded", "purpose", "KV cache", "--memory-limit"});
}

TEST_CASE("instruction sets") {
  expect_error(prompt(tiny_model(), {"--isa", "sse9"}), 2, {"sse9", "avx2", "avx512_bf16", "amx"});
  const Outcome doctor = run_cpuinfer({"doctor"});
  if (contains(doctor.out, "avx512_bf16 amx"))
    MESSAGE("skipped: this CPU has every level, none is beyond it");
  else
    expect_error(prompt(tiny_model(), {"--isa", "amx"}), 78, {"amx"});
}

TEST_CASE("kernels and profiles that do not exist") {
  expect_error(prompt(tiny_model(), {"--gemm", "cublas"}), 2, {"cublas", "reference"});
  expect_error(prompt(tiny_model(), {"--numerics", "fp64"}), 2, {"fp64", "dp"});
}

TEST_CASE("sampling out of range") {
  expect_error(prompt(tiny_model(), {"--temp", "-1"}), 2, {"temperature is -1; it must be 0 or more"});
  expect_error(prompt(tiny_model(), {"--top-p", "1.5"}), 2, {"top-p is 1.5; it must be over 0 and at most 1"});
  expect_error(prompt(tiny_model(), {"--min-p", "-0.1"}), 2, {"min-p is -0.1; it must be between 0 and 1"});
  expect_error(prompt(tiny_model(), {"--top-k", "-1"}), 2,
               {"--top-k is '-1'; it must be a whole number between 0 and"});
  expect_error(prompt(tiny_model(), {"--presence-penalty", "3"}), 2,
               {"presence-penalty is 3; it must be between -2 and 2"});
  expect_error(prompt(tiny_model(), {"--frequency-penalty", "-3"}), 2,
               {"frequency-penalty is -3; it must be between -2 and 2"});
  expect_error(prompt(tiny_model(), {"--repetition-penalty", "0"}), 2, {"repetition-penalty is 0; it must be over 0"});
  expect_error(prompt(tiny_model(), {"-n", "0"}), 2, {"--max-tokens is '0'; it must be a whole number, 1 or more"});
}

TEST_CASE("the command line") {
  expect_error({}, 2, {"no model: give --model"});
  expect_error({"--modle", "x"}, 2, {"unknown option '--modle'; did you mean '--model'?"});
  expect_error({"scroe"}, 2, {"unknown command 'scroe'; did you mean 'score'?"});
  expect_error(prompt(tiny_model(), {"--ctx", "many"}), 2, {"--ctx is 'many'; it must be a whole number, 1 or more"});
  expect_error({"-m", tiny_model(), "--prompt-file", "/nonexistent"}, 66, {"/nonexistent"});
}

TEST_CASE("standard output that cannot be written") {
  ProcessOptions full;
  full.stdout_path = "/dev/full";
  const Outcome on_full = run_cpuinfer(prompt(tiny_model()), full);
  CHECK(on_full.exit_code == 1);
  CHECK(contains(on_full.err, "cpuinfer: cannot write to stdout: No space left on device"));
  ProcessOptions closed;
  closed.close_stdout = true;
  const Outcome on_closed = run_cpuinfer(prompt(tiny_model()), closed);
  CHECK(on_closed.exit_code == 1);
  CHECK(contains(on_closed.err, "cpuinfer: cannot write to stdout: "));
  CHECK(run_cpuinfer({"--help"}, full).exit_code == 1);
  CHECK(run_cpuinfer({"plan", "-m", tiny_model()}, full).exit_code == 1);
}

TEST_CASE("a model without a chat template") {
  const auto model = copy_of_tiny("no_chat");
  // Other names for the tokens of ChatML: a base model.
  for (const char* file : {"tokenizer.json", "tokenizer_config.json"}) {
    std::string text = read_file(model / file);
    for (size_t at = 0; (at = text.find("<|im_", at)) != std::string::npos;) text.replace(at, 5, "<|xx_");
    write_file(model / file, text);
  }
  const std::string config = read_file(model / "tokenizer_config.json");
  if (contains(config, "chat_template")) {
    expect_error(prompt(model.string()), 78, {"the chat template is not ChatML", "--raw continues a text without it"});
    CHECK(run_cpuinfer(prompt(model.string(), {"--raw"})).exit_code == 0);
  }
  write_file(model / "tokenizer_config.json", "{}");
  const Outcome run = run_cpuinfer(prompt(model.string()));
  CHECK(run.exit_code == 0);
  CHECK(contains(run.err, "continued as it is: this model has no chat template"));
}
