// plan for machines that are not there, its speeds, its picture; placements of experts.
#include <doctest/doctest.h>

#include "base/format.h"
#include "base/json.h"
#include "tests/tools/process.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;

namespace {

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

const Arguments kEight = {"plan",          "--synthetic", "qwen3-30b-a3b-2507", "--topology", "numa:8 core:64 pu:2",
                          "--node-memory", "768GiB"};

Arguments with(Arguments arguments, const Arguments& more) {
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

std::string good(const Arguments& arguments) {
  const Outcome outcome = run_cpuinfer(arguments);
  REQUIRE_MESSAGE(outcome.exit_code == 0, (outcome.out + outcome.err));
  return outcome.out;
}

Json json_of(const std::string& text) {
  const auto json = parse_json(text, "stdout");
  REQUIRE_MESSAGE(json.has_value(), text);
  return *json;
}

Outcome bad(const Arguments& arguments, int exit_code) {
  const Outcome outcome = run_cpuinfer(arguments);
  CHECK(outcome.exit_code == exit_code);
  return outcome;
}

}  // namespace

TEST_CASE("plan for a machine of eight nodes, with speeds of both placements") {
  const Arguments rates = {"--node-bandwidth", "250GB/s", "--remote-bandwidth", "60GB/s", "--ctx", "200k"};
  const std::string text = good(with(kEight, rates));
  CHECK(contains(text, "threads   512 on 8 nodes of a machine that is not there"));
  CHECK(contains(text, "6.0 TiB\nit fits\nplacement slice: 1/8 of every matrix on the nodes\n"));
  CHECK(contains(text,
                 "computed from 250 GB/s of a node (given), 15 GB/s of a core, meetings of 1.5 us, 60 GB/s from "
                 "other nodes\n"));
  CHECK(contains(text, "slice: tokens/s  reads at    meetings    expert: tokens/s"));
  for (const char* context : {"\n0  ", "\n32k  ", "\n128k  ", "\n200k  ", "\n256k  "}) CHECK(contains(text, context));
  CHECK(contains(text,
                 "whole experts: of 8 chosen the fullest of 8 nodes has 2.53 on average, so they are read at 40 % "
                 "of the bandwidth at most\n"));
  CHECK_FALSE(contains(text, "not counted"));

  const Json json = json_of(good(with(kEight, with(rates, {"--json"}))));
  CHECK(json.find("threads")->as_int() == 512);
  CHECK(json.find("available_reason")->as_string() == "the planned machine");
  CHECK(json.find("placement")->find("policy")->as_string() == "slice");
  CHECK(json.find("placement")->find("node_shares")->as_array().size() == 8);
  CHECK(json.find("left_out")->as_array().empty());
  CHECK(json.find("advice")->is_null());
  const Json& speed = *json.find("speed");
  CHECK(speed.find("node_bytes_per_second")->as_double() == 250e9);
  CHECK_FALSE(speed.find("bandwidth_measured")->as_bool());
  CHECK(speed.find("meeting_seconds")->as_double() == doctest::Approx(1.5e-6));
  CHECK(speed.find("whole_expert_share")->as_double() == doctest::Approx(0.395).epsilon(0.01));
  REQUIRE(speed.find("contexts")->as_array().size() == 5);
  double before = 1e9;
  for (const Json& row : speed.find("contexts")->as_array()) {
    const double slice = row.find("slice")->find("tokens_per_second")->as_double();
    CHECK(slice < before);
    CHECK(slice > row.find("expert")->find("tokens_per_second")->as_double());
    before = slice;
  }
}

TEST_CASE("plan for another machine without a bandwidth says what has speed predicted") {
  const std::string text = good(kEight);
  CHECK(text.ends_with("\nspeed: --node-bandwidth RATE, such as 250GB/s, has it predicted\n"));
  CHECK(json_of(good(with(kEight, {"--json"}))).find("speed")->find("missing")->is_string());
  CHECK(contains(good(with(kEight, {"--node-bandwidth", "250GB/s"})), "activations of other nodes are not counted"));
}

TEST_CASE("plan measures this machine, if there is the memory") {
  const Json json = json_of(good({"plan", "-m", tiny_model(), "--ctx", "2k", "--json"}));
  const Json& speed = *json.find("speed");
  CHECK(speed.find("bandwidth_measured")->as_bool());
  CHECK(speed.find("meeting_measured")->as_bool());
  CHECK(speed.find("node_bytes_per_second")->as_double() > 1e8);
  CHECK(speed.find("meeting_seconds")->as_double() > 0);
  CHECK(contains(good({"plan", "-m", tiny_model()}), "(measured now)"));
  CHECK(contains(good({"plan", "-m", tiny_model()}),
                 "256k        over the 4096 positions that this model is made for, see --rope-scaling"));
  const Json given = json_of(good({"plan", "-m", tiny_model(), "--node-bandwidth", "20GiB/s", "--meeting", "2us",
                                   "--simulate-nodes", "2", "--json"}));
  CHECK(given.find("speed")->find("meeting_seconds")->as_double() == doctest::Approx(2e-6));
  CHECK_FALSE(given.find("speed")->find("bandwidth_measured")->as_bool());
  CHECK(contains(bad({"plan", "-m", tiny_model(), "--memory-limit", "1MiB"}, 78).out,
                 "speed: there is not the memory to measure this machine's bandwidth; --node-bandwidth gives it"));
}

TEST_CASE("a dense model has one placement") {
  const std::string text = good({"plan", "--synthetic", "qwen3-0.6b", "--layers", "2", "--topology",
                                 "numa:2 core:4 pu:1", "--node-memory", "64GiB", "--node-bandwidth", "50GB/s"});
  CHECK(contains(text, "slice: tokens/s"));
  CHECK_FALSE(contains(text, "expert"));
}

TEST_CASE("nodes of different size, and what does not fit on them") {
  const Arguments three = {"plan",       "--synthetic",         "qwen3-235b-a22b",  "--rope-scaling", "yarn:8:32768",
                           "--topology", "numa:3 core:64 pu:2", "--node-bandwidth", "250GB/s"};
  const std::string uneven = good(with(three, {"--node-memory", "200GiB,180GiB,150GiB", "--ctx", "256k"}));
  CHECK(contains(uneven, "placement slice: 34."));
  const Outcome whole =
      bad(with(three, {"--node-memory", "200GiB,180GiB,150GiB", "--ctx", "256k", "--placement", "expert"}), 78);
  CHECK(contains(whole.out, "it does not fit: node 2 needs "));
  CHECK(contains(whole.out, "\n--placement slice would fit\n"));
  CHECK(contains(whole.out, "but the experts, which are whole, on the nodes"));
  const Outcome long_context = bad(with(three, {"--node-memory", "160GiB", "--ctx", "256k"}), 78);
  CHECK(contains(long_context.out, " would fit\n"));
  CHECK(contains(long_context.out, "does not fit\n"));
  const Outcome never = bad(with(three, {"--node-memory", "20GiB"}), 78);
  CHECK(contains(never.out, "no context fits: free memory, or use a machine with more of it"));
}

TEST_CASE("plan: messages") {
  CHECK(contains(bad({"plan", "--synthetic", "qwen3-31b", "--node-bandwidth", "1GB/s"}, 2).err,
                 "unknown model 'qwen3-31b'"));
  CHECK(contains(bad(with(kEight, {"--topology", "numa:x"}), 2).err,
                 "\"numa:x\" describes no machine; expected something like"));
  CHECK(contains(bad(with(kEight, {"--node-memory", "1TiB,2TiB"}), 2).err,
                 "--node-memory has 2 sizes and --topology 8 nodes; it must be one for all, or one for each"));
  CHECK(contains(bad(with(kEight, {"--expert-usage", "/nonexistent"}), 2).err,
                 "--expert-usage balances whole experts: give --placement expert too, or leave it out"));
  const Outcome usage = bad(with(kEight, {"--placement", "expert", "--expert-usage", "/nonexistent/u.json"}), 66);
  CHECK(contains(usage.err, "/nonexistent/u.json"));
  const Outcome svg = bad(with(kEight, {"--svg", "/nonexistent/plan.svg"}), 66);
  CHECK(
      contains(svg.err, "/nonexistent/plan.svg: cannot create a temporary file beside it: No such file or directory"));
  CHECK(
      bad(with(kEight, {"--svg", scratch_directory().string()}), 1).err.ends_with(": cannot write: Is a directory\n"));
}

TEST_CASE("nodes go by the numbers of the system, and memory without CPUs is named") {
  const Arguments machine = {"plan", "--synthetic", "qwen3-30b-a3b", "--topology",
                             "pack:2 [numa(memory=64GB)] [numa(memory=16GB)] core:4 pu:1"};
  const std::string text = good(machine);
  CHECK(contains(text, "node 0      node 2         all\n"));
  CHECK(contains(text, "it fits\nleft out: node 1, 14.9 GiB without CPUs\nleft out: node 3, 14.9 GiB without CPUs\n"));
  const Json json = json_of(good(with(machine, {"--json"})));
  CHECK(json.find("node_ids")->as_array()[1].as_int() == 2);
  REQUIRE(json.find("left_out")->as_array().size() == 2);
  CHECK(json.find("left_out")->as_array()[1].find("node")->as_int() == 3);
  CHECK(json.find("left_out")->as_array()[1].find("bytes")->as_int() == 16'000'000'000);
  CHECK(contains(bad(with(machine, {"--nodes", "1-1"}), 2).err, "node 1 has memory but no CPU"));
  CHECK(contains(good({"plan", "-m", tiny_model(), "--simulate-nodes", "3", "--node-bandwidth", "9GB/s"}), "node 2"));
}

TEST_CASE("plan draws a picture") {
  const auto file = scratch_directory() / "plan.svg";
  good(with(kEight, {"--svg", file.string()}));
  const std::string svg = read_file(file);
  CHECK(svg.starts_with("<svg "));
  CHECK(svg.ends_with("</svg>\n"));
  CHECK(contains(svg, "qwen3-30b-a3b-2507, 32768 tokens of context"));
  CHECK(contains(svg, ">node 7</text>"));
  CHECK(good(with(kEight, {"--svg", "/dev/stdout"})).starts_with(svg));  // what is no regular file is written to
}

TEST_CASE("both placements give the same bits") {
  const auto hash = [&](const Arguments& more) {
    const Outcome outcome = pipe_cpuinfer(
        "Some text to score.", with({"score", "-m", tiny_model(), "--json", "-q", "--simulate-nodes", "2"}, more));
    REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
    return json_of(outcome.out).find("logits_hash")->as_string();
  };
  const std::string slice = hash({});
  CHECK(hash({"--placement", "slice"}) == slice);
  CHECK(hash({"--placement", "expert"}) == slice);
  const auto usage = scratch_directory() / "usage.json";
  write_file(usage, "{\"layers\": [[9,8,7,6,5,4,3,2], [0,0,0,0,1,1,1,1]]}");
  CHECK(hash({"--placement", "expert", "--expert-usage", usage.string()}) == slice);
}
