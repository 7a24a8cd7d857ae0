// cpuinfer pack, and models that are packed.
#include <doctest/doctest.h>

#include <fstream>

#include "base/format.h"
#include "base/json.h"
#include "base/types.h"
#include "tests/engine/checkpoint/temporary_directory.h"
#include "tests/tools/process.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;
using checkpoint::TemporaryDirectory;

namespace {

const std::string kDemo = CPUINFER_SOURCE_DIR "/models/demo";

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

std::string logits_hash(const std::string& model, Arguments extra = {}) {
  Arguments arguments = {"score", "-m", model, "--json", "-q"};
  arguments.insert(arguments.end(), extra.begin(), extra.end());
  const Outcome outcome = pipe_cpuinfer("Some text to score, long enough for several chunks.", arguments);
  REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
  return parse_json(outcome.out, "stdout")->find("logits_hash")->as_string();
}

}  // namespace

TEST_CASE("a packed model answers like the model, and is not overwritten or packed again") {
  const TemporaryDirectory directory;
  const std::string packed = directory.path() / "packed";
  const Outcome pack = pipe_cpuinfer("", {"pack", "-m", kDemo, "-o", packed});
  REQUIRE_MESSAGE(pack.exit_code == 0, pack.err);
  CHECK(contains(pack.err, packed + ": "));
  CHECK(contains(pack.err, "fingerprint "));
  // Nothing unfinished stays beside it.
  CHECK(std::distance(std::filesystem::directory_iterator(directory.path()), {}) == 1);
  CHECK(logits_hash(packed) == logits_hash(kDemo));
  CHECK(logits_hash(packed, {"--simulate-nodes", "3", "-t", "3"}) == logits_hash(kDemo));
  const Outcome answer = pipe_cpuinfer("", {"-m", packed, "-p", "Tell me a story.", "-n", "5", "--greedy"});
  CHECK(answer.exit_code == 0);
  CHECK(answer.out == pipe_cpuinfer("", {"-m", kDemo, "-p", "Tell me a story.", "-n", "5", "--greedy"}).out);
  CHECK(contains(answer.err, "packed weights"));

  const Outcome twice = pipe_cpuinfer("", {"pack", "-m", kDemo, "-o", packed});
  CHECK(twice.exit_code == 2);
  CHECK(contains(twice.err, packed + " exists and is no empty directory; nothing is overwritten"));
  const Outcome again = pipe_cpuinfer("", {"pack", "-m", packed, "-o", directory.path() / "again"});
  CHECK(again.exit_code == 2);
  CHECK(contains(again.err, "weights.packed: is packed already"));

  const Outcome bench = pipe_cpuinfer("", {"bench", "load", "-m", packed, "--warm", "--repeat", "1"});
  CHECK_MESSAGE(bench.exit_code == 0, bench.err);
  CHECK(contains(bench.out, "checking"));
}

TEST_CASE("a symbolic link to an empty directory is a place to pack to, one to itself is none") {
  const TemporaryDirectory directory;
  std::filesystem::create_directory(directory.path() / "empty");
  std::filesystem::create_directory_symlink(directory.path() / "empty", directory.path() / "link");
  const Outcome packed = pipe_cpuinfer("", {"pack", "--synthetic", "tiny", "-o", directory.path() / "link"});
  CHECK_MESSAGE(packed.exit_code == 0, packed.err);
  CHECK(std::filesystem::exists(directory.path() / "empty" / "weights.packed"));
  std::filesystem::create_symlink(directory.path() / "loop", directory.path() / "loop");
  const Outcome loop = pipe_cpuinfer("", {"pack", "--synthetic", "tiny", "-o", directory.path() / "loop"});
  CHECK(loop.exit_code == 2);
  CHECK(contains(loop.err, "exists and is no empty directory"));
}

TEST_CASE("a damaged packed model says so, by part and with what to do") {
  const TemporaryDirectory directory;
  const std::string packed = directory.path() / "packed";
  REQUIRE(pipe_cpuinfer("", {"pack", "-m", kDemo, "-o", packed}).exit_code == 0);
  {
    std::fstream file(packed + "/weights.packed", std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(-5000, std::ios::end);
    file.put('x');
  }
  const Outcome outcome = pipe_cpuinfer("", {"-m", packed, "-p", "Hello", "-n", "1"});
  CHECK(outcome.exit_code == 78);
  CHECK(contains(outcome.err, " is damaged: "));
  CHECK(contains(outcome.err, "run `cpuinfer pack` again"));
}

TEST_CASE("synthetic models are packed without a checkpoint, the same for the same seed") {
  const TemporaryDirectory directory;
  const auto pack = [&](const std::string& name, const Arguments& extra) {
    Arguments arguments = {"pack", "--synthetic", "tiny", "-o", directory.path() / name};
    arguments.insert(arguments.end(), extra.begin(), extra.end());
    return pipe_cpuinfer("", arguments);
  };
  REQUIRE(pack("a", {"--seed", "3", "-t", "1"}).exit_code == 0);
  REQUIRE(pack("b", {"--seed", "3", "-t", "2"}).exit_code == 0);
  REQUIRE(pack("c", {"--layers", "1"}).exit_code == 0);
  CHECK(read_file(directory.path() / "a" / "weights.packed") == read_file(directory.path() / "b" / "weights.packed"));
  CHECK(read_file(directory.path() / "a" / "config.json") == read_file(directory.path() / "b" / "config.json"));
  CHECK(read_file(directory.path() / "a" / "weights.packed") != read_file(directory.path() / "c" / "weights.packed"));
  const Outcome large = pack("d", {"--tokenizer", CPUINFER_SOURCE_DIR "/tests/data/tokenizer/small"});
  if (large.exit_code != 0) CHECK(contains(large.err, "but the model's vocabulary has"));
}

TEST_CASE("a model that is larger than memory is read during steps, and answers the same") {
  const TemporaryDirectory directory;
  const std::string packed = directory.path() / "packed";
  REQUIRE(pipe_cpuinfer("", {"pack", "-m", kDemo, "-o", packed}).exit_code == 0);
  const Outcome whole = pipe_cpuinfer("", {"plan", "-m", packed, "--json", "--node-bandwidth", "10GB/s"});
  REQUIRE(whole.exit_code == 0);
  const int64_t total = parse_json(whole.out, "stdout")->find("total_bytes")->as_int();
  const std::string limit = format("{}B", (total - 2_MiB) / 15 * 16);
  const Arguments streaming = {"--weights", "stream", "--memory-limit", limit};
  const auto with = [&](Arguments arguments) {
    arguments.insert(arguments.end(), streaming.begin(), streaming.end());
    return arguments;
  };
  CHECK(logits_hash(packed, streaming) == logits_hash(kDemo));
  const Outcome answer = pipe_cpuinfer("", with({"-m", packed, "-p", "Tell me a story.", "-n", "5", "--greedy"}));
  REQUIRE_MESSAGE(answer.exit_code == 0, answer.err);
  CHECK(answer.out == pipe_cpuinfer("", {"-m", kDemo, "-p", "Tell me a story.", "-n", "5", "--greedy"}).out);
  CHECK(contains(answer.err, "weights   streamed: "));
  CHECK(contains(answer.err, " GB of weights streamed, "));
  CHECK(contains(answer.err, ", waited "));

  const Outcome plan =
      pipe_cpuinfer("", with({"plan", "-m", packed, "--node-bandwidth", "10GB/s", "--disk-bandwidth", "2GB/s"}));
  CHECK_MESSAGE(plan.exit_code == 0, plan.err);
  CHECK(contains(plan.out,
                 "streaming: 0.00 GB of the disk for a token if experts are equally likely, at 2 GB/s (given) "));
  const Outcome unknown = pipe_cpuinfer("", with({"plan", "-m", packed, "--node-bandwidth", "10GB/s", "--json"}));
  CHECK(parse_json(unknown.out, "stdout")->find("speed")->find("streaming")->find("bytes_per_token") != nullptr);

  const Outcome unpacked = pipe_cpuinfer("", {"-m", kDemo, "-p", "x", "--weights", "stream"});
  CHECK(unpacked.exit_code == 2);
  CHECK(contains(unpacked.err, "`cpuinfer pack --model " + kDemo + " --output NEWDIR` writes them"));
  const Outcome word = pipe_cpuinfer("", {"-m", packed, "--weights", "disk"});
  CHECK(word.exit_code == 2);
  CHECK(contains(word.err, "--weights"));
}

TEST_CASE("what pack needs and what excludes what") {
  const auto error = [](const Arguments& arguments, int code = 2) {
    const Outcome outcome = pipe_cpuinfer("", arguments);
    CHECK_MESSAGE(outcome.exit_code == code, outcome.err);
    return outcome.err;
  };
  CHECK(contains(error({"pack", "-o", "x"}), "no model: give --model with a directory or a name, or --synthetic NAME"));
  CHECK(contains(error({"pack", "-m", kDemo}), "no directory to write to: give --output DIR"));
  CHECK(contains(error({"pack", "-m", kDemo, "--synthetic", "tiny", "-o", "x"}),
                 "--model and --synthetic exclude each other"));
  CHECK(contains(error({"pack", "-m", kDemo, "--layers", "3", "-o", "x"}),
                 "--layers, --seed and --tokenizer are of a synthetic model only"));
  CHECK(contains(error({"pack", "--synthetic", "qwen9", "-o", "x"}), "qwen3-30b-a3b"));
  const TemporaryDirectory directory;
  directory.write("file", "");
  CHECK(contains(error({"pack", "-m", kDemo, "-o", directory.path() / "file" / "x"}, 1), "cannot make this directory"));
}
