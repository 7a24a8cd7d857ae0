// cpuinfer bench load as its users run it. Results, not speed.
#include <doctest/doctest.h>

#include "base/format.h"
#include "base/json.h"
#include "base/types.h"
#include "tests/tools/process.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;

namespace {

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

// A checkpoint with files large enough for the disk to be measured: 86 MB of float32, 43 MB packed.
const std::string& checkpoint() {
  static const std::string directory = [] {
    const auto path = scratch_directory() / "load";
    write_file(scratch_directory() / "load.json",
               R"({"architectures":["Qwen3ForCausalLM"],"hidden_size":512,"num_hidden_layers":3,
                   "num_attention_heads":8,"num_key_value_heads":2,"head_dim":64,"vocab_size":10000,
                   "intermediate_size":1500,"rms_norm_eps":1e-6,"tie_word_embeddings":false,
                   "max_position_embeddings":64,"rope_theta":10000.0,"torch_dtype":"float32"})");
    const Outcome made = run_cpuinfer({"synth", "--config", (scratch_directory() / "load.json").string(), "-o",
                                       path.string(), "--dtype", "f32", "--shard-size", "40MiB"});
    REQUIRE_MESSAGE(made.exit_code == 0, made.err);
    return path.string();
  }();
  return directory;
}

Outcome bench_load(Arguments arguments) {
  arguments.insert(arguments.begin(), {"bench", "load", "--quick"});
  return run_cpuinfer(arguments);
}

Json json_of(const Outcome& outcome) {
  REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
  auto json = parse_json(outcome.out, "stdout");
  REQUIRE_MESSAGE(json.has_value(), outcome.out);
  return *json;
}

double number(const Json& json, std::string_view key) {
  const Json* const value = json.find(key);
  REQUIRE_MESSAGE(value != nullptr, std::string(key));
  return value->as_double();
}

}  // namespace

TEST_CASE("bench load: the disk before and after every load, and every byte loaded") {
  const Json json = json_of(bench_load({"-m", checkpoint(), "--repeat", "2", "-t", "2", "--json"}));
  CHECK(json.find("files")->as_int() >= 2);
  CHECK(json.find("threads")->as_int() == 2);
  const auto& loads = json.find("loads")->as_array();
  const auto& disks = json.find("disk_gb_s")->as_array();
  REQUIRE(loads.size() == 3);
  REQUIRE(disks.size() == 4);
  std::vector<double> shares;
  for (size_t i = 0; i < loads.size(); ++i) {
    CHECK(loads[i].find("new_memory")->as_bool() == (i == 0));
    CHECK(number(loads[i], "bytes") == number(json, "file_bytes"));
    CHECK(number(loads[i], "seconds") > 0);
    CHECK(number(loads[i], "gb_s") == doctest::Approx(number(json, "file_bytes") / number(loads[i], "seconds") / 1e9));
    CHECK(number(loads[i], "read_seconds") + number(loads[i], "pack_seconds") <=
          8 * number(loads[i], "seconds"));  // workers that load
    CHECK(number(loads[i], "share_of_disk") ==
          doctest::Approx(number(loads[i], "gb_s") * 2 / (disks[i].as_double() + disks[i + 1].as_double())));
    if (i > 0) shares.push_back(number(loads[i], "share_of_disk"));
  }
  CHECK(number(json, "share_of_disk") == doctest::Approx((shares[0] + shares[1]) / 2));
  // All but the norms, at half the width.
  CHECK(number(json, "packed_bytes") == doctest::Approx(number(json, "file_bytes") / 2).epsilon(0.01));
  if (json.find("peak_extra_bytes") != nullptr) CHECK(number(json, "peak_extra_bytes") < 24_MiB);
}

TEST_CASE("bench load: the table") {
  const Outcome cold = bench_load({"-m", checkpoint(), "--repeat", "1", "-t", "1"});
  REQUIRE_MESSAGE(cold.exit_code == 0, cold.err);
  for (const char* part : {"1 thread on 1 node", "disk, sequential", "load into new memory", "\nload 1 ",
                           " % of the disk's sequential read (median of 1)", " % of the bytes came straight from",
                           " packed, ", " of buffers"})
    CHECK_MESSAGE(contains(cold.out, part), part << " in " << cold.out);
  // How the page cache is kept out depends on the file system.
  const std::string cache =
      json_of(bench_load({"-m", checkpoint(), "--repeat", "0", "--json"})).find("cache")->as_string();
  CHECK_MESSAGE((cache == "O_DIRECT" || cache.starts_with("the file system lies in memory: ") ||
                 cache.starts_with("the file system refuses O_DIRECT: ")),
                cache);
  CHECK_MESSAGE(contains(cold.out, "; " + cache + "\n"), cold.out);

  const Outcome warm = bench_load({"-m", checkpoint(), "--repeat", "1", "--warm"});
  REQUIRE_MESSAGE(warm.exit_code == 0, warm.err);
  CHECK(contains(warm.out, "from the page cache, after the first load"));
  CHECK(contains(warm.out, "0 % of the bytes came straight from the disk"));
  CHECK_FALSE(contains(warm.out, "sequential"));
}

TEST_CASE("bench load: files too small for the disk to be measured") {
  const auto path = scratch_directory() / "small";
  REQUIRE(run_cpuinfer({"synth", "tiny", "-o", path.string(), "--shard-size", "1MiB"}).exit_code == 0);
  const Outcome outcome = bench_load({"-m", path.string(), "--repeat", "0"});
  REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
  CHECK(contains(outcome.out, "the disk was not measured: "));
  CHECK(contains(outcome.out, "no *.safetensors file of 8.0 MiB or more to read"));
}

TEST_CASE("bench load: what it cannot do") {
  const auto fails = [](const Arguments& arguments, int code, std::string_view message) {
    const Outcome outcome = bench_load(arguments);
    CHECK(outcome.exit_code == code);
    CHECK_MESSAGE(contains(outcome.err, message), outcome.err);
    CHECK(outcome.out.empty());
  };
  fails({}, 2, "no model: give --model");
  fails({"-m", "/does/not/exist"}, 66, "/does/not/exist");
  fails({"-m", checkpoint(), "--memory-limit", "100MiB"}, 78, "the weights alone must fit");
  fails({"-m", checkpoint(), "--simulate-nodes", "3", "-t", "2"}, 2, "2 threads cannot serve 3 nodes");
}

TEST_CASE("bench load: Ctrl-C ends it") {
  Terminal terminal({"bench", "load", "-m", checkpoint(), "--repeat", "1000"});
  REQUIRE(terminal.expect(" left"));  // the bar of the progress
  terminal.type("\x03");
  CHECK(terminal.expect("interrupted"));
  CHECK(terminal.finish() == 130);
  CHECK_FALSE(contains(terminal.screen(), "load into new memory"));
}
