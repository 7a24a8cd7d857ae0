// cpuinfer bench model and --profile as their users run them. Results, not speed.
#include <doctest/doctest.h>
#include <signal.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "base/format.h"
#include "base/json.h"
#include "base/types.h"
#include "tests/tools/process.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;

namespace {

const std::string kDemo = std::string(CPUINFER_SOURCE_DIR) + "/models/demo";

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

Outcome bench_model(Arguments arguments) {
  arguments.insert(arguments.begin(), {"bench", "model"});
  return run_cpuinfer(arguments);
}

Json json_of(const Outcome& outcome) {
  REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
  auto json = parse_json(outcome.out, "stdout");
  REQUIRE_MESSAGE(json.has_value(), outcome.out);
  return *json;
}

void fails(const Arguments& arguments, int code, std::string_view message) {
  const Outcome outcome = bench_model(arguments);
  CHECK(outcome.exit_code == code);
  CHECK_MESSAGE(contains(outcome.err, message), outcome.err);
  CHECK(outcome.out.empty());
}

// "| a | b |" to {"a", "b"}.
std::vector<std::string> cells_of(const std::string& line) {
  std::vector<std::string> cells;
  std::istringstream stream(line);
  std::string cell;
  std::getline(stream, cell, '|');
  while (std::getline(stream, cell, '|')) {
    const size_t first = cell.find_first_not_of(' ');
    cells.push_back(first == std::string::npos ? "" : cell.substr(first, cell.find_last_not_of(' ') - first + 1));
  }
  return cells;
}

// The rows of the first Markdown table, without its heading.
std::vector<std::vector<std::string>> table_of(const std::string& text) {
  std::vector<std::vector<std::string>> rows;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line) && line.starts_with("|");) rows.push_back(cells_of(line));
  REQUIRE(rows.size() > 2);
  rows.erase(rows.begin(), rows.begin() + 2);
  return rows;
}

double number(const Json& json, const char* name) {
  REQUIRE_MESSAGE(json.find(name) != nullptr, name);
  return json.find(name)->as_double();
}

// The model "tiny": 2 layers, hidden 64, 4 heads on 2 kv heads of 16, 8 experts of 32, 1536 tokens. Bytes of packed
// weights (outputs in sixteens): q, k, v; o; router; an expert; lm_head.
constexpr double kAttentionAndRouter = 128 * 64 * 2 + 64 * 64 * 2 + 16 * 64 * 2;
constexpr double kExpert = 64 * 64 * 2 + 64 * 32 * 2;
constexpr double kLmHead = 1536 * 64 * 2;
// Of a token of context that is looked at: keys and values of 2 layers and 2 heads.
constexpr double kCacheBytes = 2 * 2 * 2 * 16 * 2;
// Multiplications and additions of a row.
constexpr double kRowFlops = 2 * 2 * (128 * 64 + 64 * 64 + 8 * 64);
constexpr double kExpertFlops = 2 * 2 * (64 * 64 + 64 * 32);
constexpr double kLmHeadFlops = 2 * 1536 * 64;
constexpr double kCacheFlops = 2 * 4 * 4 * 16;

}  // namespace

TEST_CASE("bytes and operations of decode are those of the matrices, by hand") {
  const Outcome outcome = bench_model({"--synthetic", "tiny", "--quick", "--json", "-t", "2", "--depth", "0,300",
                                       "--batch", "1,3", "--experts", "1,2", "--pp", "0", "--tg", "4"});
  const Json json = json_of(outcome);
  CHECK(json.find("model")->as_string() == "tiny");
  CHECK(json.find("layers")->as_int() == 2);
  CHECK(json.find("threads")->as_int() == 2);
  const Json::Array& cases = json.find("cases")->as_array();
  REQUIRE(cases.size() == 8);
  size_t index = 0;
  for (const int experts : {1, 2}) {
    for (const int depth : {0, 300}) {
      for (const int batch : {1, 3}) {
        const Json& test = cases[index++];
        INFO(to_json_text(test));
        CHECK(test.find("test")->as_string() == format("tg4{}{}", depth > 0 ? " @ d300" : "", batch > 1 ? ", b3" : ""));
        CHECK(test.find("experts")->as_int() == experts);
        CHECK(test.find("seconds")->as_array().size() == 2);
        CHECK(test.find("steps")->as_int() == 8);
        const double seen = depth + 2.5;  // tokens that a step looks at: depth + 1, ..., depth + 4
        const double flops = kRowFlops + experts * kExpertFlops + kLmHeadFlops + kCacheFlops * seen;
        CHECK(number(test, "flops_per_token") == doctest::Approx(flops).epsilon(1e-12));
        const double fixed = 2 * kAttentionAndRouter + kLmHead;
        const double bytes = number(test, "bytes_per_token");
        if (batch == 1) {
          CHECK(bytes == doctest::Approx(fixed + 2 * experts * kExpert + kCacheBytes * seen).epsilon(1e-12));
        } else {
          // Weights once for three sequences; of the experts those that any of them uses, in 2 layers and 4 steps.
          const double used = 4 * (batch * (bytes - kCacheBytes * seen) - fixed) / kExpert;
          CHECK(used == doctest::Approx(std::round(used)).epsilon(1e-9));
          CHECK(used > 8 * experts);  // sequences differ, so do their experts
          CHECK(used <= 8 * std::min(3 * experts, 8));
        }
        double phase_bytes = 0, phase_flops = 0;
        for (const Json& phase : test.find("phases")->as_array()) {
          phase_bytes += number(phase, "bytes");
          phase_flops += number(phase, "flops");
        }
        CHECK(phase_bytes == doctest::Approx(bytes * 8 * batch).epsilon(1e-12));
        CHECK(phase_flops == doctest::Approx(flops * 8 * batch).epsilon(1e-12));
        // The bound and the share of it, from the numbers beside them.
        const double bound =
            std::max(bytes / number(test, "read_bytes_per_second"), flops / number(test, "peak_flops_per_second"));
        CHECK(number(test, "bound_tokens_per_second") == doctest::Approx(1 / bound));
        CHECK(number(test, "share_of_bound") == doctest::Approx(bound * number(test, "tokens_per_second")));
        CHECK(number(test, "tokens_per_second") > 0);
        CHECK(number(test, "fma_flops_per_second") > 0);
      }
    }
  }
}

TEST_CASE("operations of prefill, in chunks that read the weights again") {
  for (const int chunk : {64, 8}) {
    const Json json = json_of(bench_model({"--synthetic", "tiny", "--quick", "--json", "-t", "1", "--tg", "0", "--pp",
                                           "16", "--depth", "300", "--chunk", std::to_string(chunk)}));
    const Json& test = json.find("cases")->as_array().at(0);
    CHECK(test.find("test")->as_string() == "pp16 @ d300");
    CHECK(test.find("steps")->as_int() == 2 * (chunk == 64 ? 1 : 2));
    // Token i looks at 300 + i + 1 tokens; only the last has logits.
    const double flops = 16 * (kRowFlops + 2 * kExpertFlops + kCacheFlops * 308.5) + kLmHeadFlops;
    CHECK(number(test, "flops_per_token") == doctest::Approx(flops / 16).epsilon(1e-12));
  }
}

TEST_CASE("the table says what the JSON says, and has a row for each case") {
  const Arguments arguments = {"--synthetic", "tiny", "--quick", "-t",   "1",        "--depth", "0,256",
                               "--tg",        "3",    "--pp",    "5,16", "--layers", "3"};
  Arguments as_json = arguments;
  as_json.push_back("--json");
  const Json json = json_of(bench_model(as_json));
  const Outcome text = bench_model(arguments);
  REQUIRE_MESSAGE(text.exit_code == 0, text.err);
  const auto rows = table_of(text.out);
  const Json::Array& cases = json.find("cases")->as_array();
  REQUIRE(rows.size() == 6);
  REQUIRE(cases.size() == 6);
  for (size_t i = 0; i < rows.size(); ++i) {
    REQUIRE(rows[i].size() == 10);
    CHECK(rows[i][0] == "tiny");
    CHECK(rows[i][1] == "3");
    CHECK(rows[i][2] == "2");
    CHECK(rows[i][3] == cases[i].find("test")->as_string());
    CHECK(contains(rows[i][4], " ± "));
    CHECK(rows[i][5] == format("{:.4g}", number(cases[i], "bytes_per_token") * 1e-9));
    CHECK(rows[i][6] == format("{:.4g}", number(cases[i], "flops_per_token") * 1e-9));
    CHECK((rows[i][7].starts_with("bandwidth ") || rows[i][7].starts_with("arithmetic ")));
    CHECK(std::stod(rows[i][8]) > 0);
    CHECK(std::stod(rows[i][9]) > 0);
  }
  CHECK(contains(text.out, "This machine, measured between the repeats: reads "));
  CHECK_FALSE(contains(text.out, "| phase"));
}

TEST_CASE("the demo model, with phases") {
  const Outcome plan = run_cpuinfer({"plan", "--json", "-m", kDemo});
  const Json planned = json_of(plan);
  const Json json = json_of(bench_model({"-m", kDemo, "--quick", "--json", "-t", "2", "--pp", "0"}));
  const Json& test = json.find("cases")->as_array().at(0);
  CHECK(json.find("model")->as_string() == "demo");
  CHECK(test.find("counting_ratio") == nullptr);  // without --profile
  const double cache = number(planned, "kv_bytes_per_token") * 2.5;
  CHECK(number(test, "bytes_per_token") == doctest::Approx(number(planned, "decode_weight_bytes") + cache));

  const Outcome text = bench_model({"-m", kDemo + "/", "--quick", "--profile", "-t", "1"});
  REQUIRE_MESSAGE(text.exit_code == 0, text.err);
  CHECK(table_of(text.out)[0][0] == "demo");
  for (const char* phase : {"| qkv ", "| attention ", "| o ", "| router ", "| gate/up ", "| down ", "| lm_head ",
                            "| between phases ", "| all "})
    CHECK_MESSAGE(contains(text.out, phase), phase);
  CHECK(contains(text.out, "\nCounting this takes "));
  CHECK(contains(text.out, " % of a repeat: median of 2 pairs with and without, the middle half "));
}

TEST_CASE("depths beyond the positions of a model") {
  const Outcome outcome = bench_model({"--synthetic", "tiny", "--quick", "-t", "1", "--depth", "9000", "--pp", "0"});
  REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
  CHECK(contains(outcome.err, "rope      linear, factor 3"));
}

TEST_CASE("what does not fit is said; if nothing fits, nothing is loaded") {
  const Outcome some = bench_model({"--synthetic", "tiny", "--quick", "-t", "1", "--memory-limit", "400MiB", "--depth",
                                    "0,4M", "--batch", "1,65536", "--pp", "0"});
  REQUIRE_MESSAGE(some.exit_code == 0, some.err);
  const auto rows = table_of(some.out);
  REQUIRE(rows.size() == 4);
  CHECK(contains(rows[0][4], " ± "));
  for (int i : {1, 2, 3}) CHECK(rows[i][4] == "does not fit");
  CHECK(contains(some.out, "tg4 @ d4194304 does not fit: the plan needs 2."));
  CHECK(contains(some.out, "this process may take 400.0 MiB"));
  CHECK(contains(some.out, "tg4 @ d4194304, b65536 does not fit: node 0 needs 14"));

  fails({"--synthetic", "tiny", "--quick", "--memory-limit", "10MiB"}, 78, "not enough memory, nothing was loaded");
  fails({"--synthetic", "tiny", "--quick", "--memory-limit", "10MiB"}, 78, "no case fits: take fewer --layers");
  fails({"--synthetic", "qwen3-235b-a22b", "--layers", "1000"}, 78, "experts  ");
  // Largest numbers that the options take.
  fails({"--synthetic", "qwen3-30b-a3b", "--depth", "128M", "--batch", "65536", "--tg", "128M", "--pp", "0"}, 78,
        "KV cache");
}

TEST_CASE("options of bench model") {
  fails({}, 2, "no model: give --model with a directory or a name, or --synthetic NAME");
  fails({"-m", kDemo, "--synthetic", "tiny"}, 2, "--model and --synthetic exclude each other");
  fails({"-m", kDemo, "--layers", "3"}, 2, "--layers changes a synthetic model only");
  fails({"-m", "/does/not/exist"}, 66, "/does/not/exist");
  fails({"--synthetic", "tinny"}, 2, "unknown model 'tinny'; did you mean 'tiny'?");
  fails({"--synthetic", "tiny", "--layers", "0"}, 2, "--layers is '0'; it must be a whole number");
  fails({"--synthetic", "tiny", "--layers", "1025"}, 2,
        "--layers is '1025'; it must be a whole number between 1 and 1024");
  fails({"--synthetic", "tiny", "--depth", "0,,4"}, 2, "--depth is ''; it must be a whole number");
  fails({"--synthetic", "tiny", "--depth", "1,x"}, 2, "--depth is 'x'");
  fails({"--synthetic", "tiny", "--depth", "-1"}, 2, "--depth is '-1'");
  fails({"--synthetic", "tiny", "--depth", "1G"}, 2, "--depth is '1G'");
  fails({"--synthetic", "tiny", "--batch", "0"}, 2, "--batch is '0'");
  fails({"--synthetic", "tiny", "--batch", "1,65537"}, 2, "--batch is '65537'");
  fails({"--synthetic", "tiny", "--experts", "0"}, 2, "--experts is '0'");
  fails({"--synthetic", "tiny", "--experts", "2,9"}, 2, "this model has 8 experts");
  fails({"--synthetic", "qwen3-0.6b", "--experts", "2"}, 2, "this model is dense");
  fails({"--synthetic", "tiny", "--repeat", "0"}, 2, "--repeat is '0'");
  fails({"--synthetic", "tiny", "--tg", "0", "--pp", "0"}, 2, "there is nothing to measure");
  fails({"--synthetic", "tiny", "--chunk", "0"}, 2, "--chunk is '0'");
  fails({"--synthetic", "tiny", "--gemm", "fastest"}, 2, "fastest");
}

TEST_CASE("Ctrl-C ends it") {
  Process process({"bench", "model", "--synthetic", "tiny", "--quick", "-t", "1", "--repeat", "1000", "--tg", "2000"});
  REQUIRE(process.read_until([](const std::string&, const std::string& err) { return contains(err, "kernels"); }));
  process.signal(SIGINT);
  const Outcome outcome = process.finish();
  CHECK(outcome.exit_code == 130);
  CHECK_FALSE(outcome.killed_by_signal);
  CHECK(outcome.out.empty());
}

TEST_CASE("--profile of an answer") {
  const Arguments arguments = {"-m", kDemo, "--prompt", "Tell me a story.", "--max-tokens", "5", "--greedy", "-t", "1"};
  const Outcome plain = run_cpuinfer(arguments);
  Arguments with = arguments;
  with.push_back("--profile");
  const Outcome profiled = run_cpuinfer(with);
  REQUIRE_MESSAGE(profiled.exit_code == 0, profiled.err);
  CHECK(profiled.out == plain.out);
  CHECK(contains(profiled.err, "profile   this machine reads "));
  CHECK(contains(profiled.err, "profile   prefill: 1 steps, "));
  CHECK(contains(profiled.err, "profile   decode: 4 steps, 4 tokens, "));
  CHECK(contains(profiled.err, "| lm_head "));
  CHECK_FALSE(contains(plain.err, "| lm_head "));
  // Nobody would see it.
  with.push_back("-q");
  CHECK(run_cpuinfer(with).err.empty());
}
