// Ends that nobody planned: Ctrl-C at any moment, SIGTERM, a reader that goes away.
#include <doctest/doctest.h>
#include <signal.h>
#include <unistd.h>

#include "tests/tools/process.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;

namespace {

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

// A model that takes seconds for what is asked of it here, with the scalar kernels.
const std::string& slow_model() {
  static const std::string directory = [] {
    const auto config = scratch_directory() / "slow.json";
    write_file(config,
               R"({"architectures":["Qwen3ForCausalLM"],"model_type":"qwen3","num_hidden_layers":4,"hidden_size":512,
      "num_attention_heads":8,"num_key_value_heads":2,"head_dim":64,"intermediate_size":2048,"vocab_size":1536,
      "max_position_embeddings":8192,"rope_theta":10000.0,"rms_norm_eps":1e-6,"tie_word_embeddings":true})");
    const std::string path = (scratch_directory() / "slow").string();
    const Outcome made = run_cpuinfer({"synth", "--config", config.string(), "-o", path, "--tokenizer",
                                       CPUINFER_SOURCE_DIR "/tests/data/tokenizer/small"});
    REQUIRE_MESSAGE(made.exit_code == 0, made.err);
    return path;
  }();
  return directory;
}

// A model that takes a while to be read.
const std::string& large_model() {
  static const std::string directory = [] {
    const auto config = scratch_directory() / "large.json";
    write_file(config,
               R"({"architectures":["Qwen3ForCausalLM"],"model_type":"qwen3","num_hidden_layers":2,"hidden_size":1024,
      "num_attention_heads":16,"num_key_value_heads":4,"head_dim":64,"intermediate_size":8192,"vocab_size":1536,
      "max_position_embeddings":8192,"rope_theta":10000.0,"rms_norm_eps":1e-6,"tie_word_embeddings":true})");
    const std::string path = (scratch_directory() / "large").string();
    const Outcome made = run_cpuinfer({"synth", "--config", config.string(), "-o", path, "--dtype", "f32",
                                       "--tokenizer", CPUINFER_SOURCE_DIR "/tests/data/tokenizer/small"});
    REQUIRE_MESSAGE(made.exit_code == 0, made.err);
    return path;
  }();
  return directory;
}

std::string long_text(int words) {
  std::string text;
  for (int i = 0; i < words; ++i) text += " word";
  return text;
}

Arguments slow(Arguments rest) {
  Arguments all = {"-m", slow_model(), "--isa", "reference", "-t", "1", "--chunk", "16"};
  all.insert(all.end(), rest.begin(), rest.end());
  return all;
}

}  // namespace

TEST_CASE("Ctrl-C while stdin is read") {
  ProcessOptions options;
  options.input = "the beginning of a prompt";
  options.keep_stdin_open = true;
  Process process({"tokenize", "-m", slow_model()}, options);
  ::usleep(500'000);
  process.signal(SIGINT);
  const Outcome outcome = process.finish();
  CHECK(outcome.exit_code == 130);
  CHECK_FALSE(outcome.killed_by_signal);
  CHECK(contains(outcome.err, "interrupted while reading stdin"));
}

TEST_CASE("Ctrl-C while weights are loaded") {
  // Loading may be over before the signal comes; among some attempts one meets it.
  bool met = false;
  for (int attempt = 0; attempt < 10 && !met; ++attempt) {
    Process process({"-m", large_model(), "-t", "1", "--prompt", "Hello"});
    REQUIRE(process.read_until([](const auto&, const std::string& err) { return contains(err, "sampling"); }));
    process.signal(SIGINT);
    const Outcome outcome = process.finish();
    INFO(outcome.err);
    CHECK(outcome.exit_code == 130);
    CHECK_FALSE(outcome.killed_by_signal);
    met = !contains(outcome.err, "prefill");
  }
  CHECK(met);
}

TEST_CASE("Ctrl-C during prefill") {
  Process process(slow({"--prompt", long_text(1200)}));
  REQUIRE(process.read_until([](const auto&, const std::string& err) { return contains(err, "sampling"); }));
  ::usleep(500'000);  // the model is loaded in milliseconds, the prompt takes many seconds
  process.signal(SIGINT);
  const Outcome outcome = process.finish();
  INFO(outcome.err);
  CHECK(outcome.exit_code == 130);
  CHECK_FALSE(outcome.killed_by_signal);
  CHECK(outcome.out.empty());
  CHECK(contains(outcome.err, "answer 0 tokens"));
  CHECK(outcome.err.ends_with("; interrupted\n"));
}

TEST_CASE("a signal during decode leaves the answer so far, a newline and the statistics") {
  for (const int number : {SIGINT, SIGTERM}) {
    Process process(slow({"--prompt", "Hello"}));
    REQUIRE(process.read_until([](const std::string& out, const auto&) { return out.size() > 10; }));
    process.signal(number);
    const Outcome outcome = process.finish();
    INFO(outcome.err);
    CHECK(outcome.exit_code == 128 + number);
    CHECK_FALSE(outcome.killed_by_signal);
    CHECK(outcome.out.ends_with('\n'));
    CHECK(outcome.err.ends_with("; interrupted\n"));
    CHECK(contains(outcome.err, "tokens/s"));
  }
}

TEST_CASE("a signal during decode: --profile measures nothing then") {
  Process process(slow({"--prompt", "Hello", "--profile"}));
  REQUIRE(process.read_until([](const std::string& out, const auto&) { return out.size() > 10; }));
  process.signal(SIGINT);
  const Outcome outcome = process.finish();
  CHECK(outcome.exit_code == 130);
  CHECK(outcome.err.ends_with("; interrupted\n"));
}

TEST_CASE("a second Ctrl-C ends at once") {
  Process process(slow({"--chunk", "4096", "--prompt", long_text(1200)}));  // one step takes seconds
  REQUIRE(process.read_until([](const auto&, const std::string& err) { return contains(err, "sampling"); }));
  ::usleep(500'000);
  process.signal(SIGINT);
  ::usleep(100'000);
  const auto before = std::chrono::steady_clock::now();
  process.signal(SIGINT);
  CHECK(process.finish().exit_code == 130);
  CHECK(std::chrono::steady_clock::now() - before < std::chrono::seconds(2));
}

TEST_CASE("Ctrl-C while a text is scored") {
  const auto npy = scratch_directory() / "interrupted.npy";
  ProcessOptions options;
  options.input = long_text(1200);
  Process process(
      {"score", "-m", slow_model(), "--isa", "reference", "-t", "1", "--chunk", "16", "--logits", npy.string()},
      options);
  REQUIRE(process.read_until([](const auto&, const std::string& err) { return contains(err, "kernels"); }));
  ::usleep(500'000);
  process.signal(SIGINT);
  const Outcome outcome = process.finish();
  CHECK(outcome.exit_code == 130);
  CHECK(outcome.out.empty());
  CHECK(contains(outcome.err, "interrupted"));
  CHECK_FALSE(std::filesystem::exists(npy));
  for (const auto& entry : std::filesystem::directory_iterator(scratch_directory()))
    CHECK_FALSE(contains(entry.path().string(), ".tmp-"));
}

TEST_CASE("Ctrl-C while a checkpoint is written leaves nothing") {
  const auto target = scratch_directory() / "interrupted";
  Process process({"synth", "qwen3-0.6b", "--layers", "2", "-o", target.string()});  // 350 MiB
  while (!std::filesystem::exists(target) || std::filesystem::is_empty(target)) ::usleep(1000);
  process.signal(SIGINT);
  const Outcome outcome = process.finish();
  INFO(outcome.err);
  CHECK(outcome.exit_code == 130);
  CHECK(contains(outcome.err, "the unfinished checkpoint is removed"));
  CHECK(std::filesystem::is_empty(target));
}

TEST_CASE("a reader of stdout that goes away ends it quietly") {
  Process process(slow({"--prompt", "Hello"}));
  REQUIRE(process.read_until([](const std::string& out, const auto&) { return !out.empty(); }));
  process.close_stdout();  // | head -c1
  const Outcome outcome = process.finish();
  INFO(outcome.err);
  CHECK(outcome.exit_code == 141);
  CHECK_FALSE(outcome.killed_by_signal);
  CHECK_FALSE(contains(outcome.err, "cpuinfer: "));
}
