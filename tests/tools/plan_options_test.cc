// The options of `cpuinfer plan`, and those of placement, as data.
#include <doctest/doctest.h>

#include "base/format.h"
#include "tools/option_values.h"
#include "tools/options.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;

namespace {

Result<CommandLine> parse(const std::vector<std::string>& arguments, const char* variable = "",
                          const char* value = "") {
  return parse_command_line(arguments, [&](const char* name) -> std::optional<std::string> {
    return std::string_view(name) == variable ? std::optional<std::string>(value) : std::nullopt;
  });
}

PlanOptions plan(std::vector<std::string> arguments, const char* variable = "", const char* value = "") {
  arguments.insert(arguments.begin(), "plan");
  const Result<CommandLine> command = parse(arguments, variable, value);
  REQUIRE_MESSAGE(command.has_value(), (command ? "" : command.error().message));
  return std::get<PlanOptions>(*command);
}

// Without where the options are listed.
std::string usage_error(const std::vector<std::string>& arguments) {
  const Result<CommandLine> command = parse(arguments);
  REQUIRE_FALSE(command.has_value());
  CHECK(command.error().code == ErrorCode::kUsage);
  return command.error().message.substr(0, command.error().message.find("; 'cpuinfer"));
}

}  // namespace

TEST_CASE("rates are powers of 1000 or 1024, with or without a space") {
  CHECK(*parse_rate("--r", "250GB/s") == 250e9);
  CHECK(*parse_rate("--r", "250 GB/s") == 250e9);
  CHECK(*parse_rate("--r", "1.5TB/s") == 1.5e12);
  CHECK(*parse_rate("--r", "3MB/s") == 3e6);
  CHECK(*parse_rate("--r", "7kB/s") == 7e3);
  CHECK(*parse_rate("--r", "2GiB/s") == 0x1p31);
  CHECK(*parse_rate("--r", "1 TiB/s") == 0x1p40);
  for (const char* wrong : {"", "250", "250GB", "GB/s", "-1GB/s", "0GB/s", "250  GB/s", "250gb/s", "1e400GB/s",
                            "nanGB/s", "infGB/s", "5xGB/s", "250GB/s "}) {
    INFO(wrong);
    const auto rate = parse_rate("--node-bandwidth", wrong);
    REQUIRE_FALSE(rate);
    CHECK(rate.error().code == ErrorCode::kUsage);
    CHECK(rate.error().message == format("--node-bandwidth is '{}'; it must be a rate such as 250GB/s (powers of 1000) "
                                         "or 230GiB/s",
                                         wrong));
  }
}

TEST_CASE("times have a unit") {
  CHECK(*parse_time("--t", "1.5us") == doctest::Approx(1.5e-6));
  CHECK(*parse_time("--t", "800 ns") == doctest::Approx(8e-7));
  CHECK(*parse_time("--t", "2ms") == doctest::Approx(2e-3));
  CHECK(*parse_time("--t", "0s") == 0);
  for (const char* wrong : {"", "1.5", "us", "-1us", "1 m", "infs"}) {
    INFO(wrong);
    const auto time = parse_time("--meeting", wrong);
    REQUIRE_FALSE(time);
    CHECK(time.error().message == format("--meeting is '{}'; it must be a time such as 1.5us or 800ns", wrong));
  }
}

TEST_CASE("sizes in a list") {
  CHECK(*parse_sizes("--m", "768GiB") == std::vector<int64_t>{768_GiB});
  CHECK(*parse_sizes("--m", "1G,512MiB,2T") == std::vector<int64_t>{1_GiB, 512_MiB, 2048_GiB});
  for (const char* wrong : {"", ",", "1G,", ",1G", "1G;2G", "0"}) {
    INFO(wrong);
    CHECK_FALSE(parse_sizes("--m", wrong));
  }
}

TEST_CASE("every option of plan arrives") {
  const PlanOptions o = plan({"--synthetic",
                              "qwen3-30b-a3b",
                              "--layers",
                              "4",
                              "--topology",
                              "numa:2 core:4 pu:1",
                              "--node-memory",
                              "64GiB,32GiB",
                              "--node-bandwidth",
                              "250 GB/s",
                              "--remote-bandwidth",
                              "60GB/s",
                              "--core-bandwidth",
                              "12GB/s",
                              "--meeting",
                              "2us",
                              "--svg",
                              "F",
                              "--placement",
                              "expert",
                              "--expert-usage",
                              "U",
                              "--json"});
  CHECK(o.synthetic == "qwen3-30b-a3b");
  CHECK(o.layers == 4);
  CHECK(o.topology == "numa:2 core:4 pu:1");
  CHECK(o.node_memory == std::vector<int64_t>{64_GiB, 32_GiB});
  CHECK(o.speed.node_bandwidth == 250e9);
  CHECK(o.speed.remote_bandwidth == 60e9);
  CHECK(o.speed.core_bandwidth == 12e9);
  CHECK(o.speed.meeting == doctest::Approx(2e-6));
  CHECK(o.svg_file == "F");
  CHECK(o.model.engine.whole_experts);
  CHECK(o.model.engine.expert_usage_file == "U");
  CHECK(o.json);
  CHECK(plan({"--synthetic", "tiny"}, "CPUINFER_MODEL", "M").synthetic == "tiny");  // a variable contradicts nothing
  CHECK_FALSE(plan({"-m", "M"}, "CPUINFER_SVG", "F").svg_file.has_value());         // belongs to one call
}

TEST_CASE("placement is an option of everything that has an engine") {
  for (const char* value : {"slice", "expert"}) {
    const bool whole = std::string_view(value) == "expert";
    CHECK(std::get<RunOptions>(*parse({"-m", "M", "--placement", value})).model.engine.whole_experts == whole);
    CHECK(std::get<ScoreOptions>(*parse({"score", "-m", "M", "--placement", value})).model.engine.whole_experts ==
          whole);
    CHECK(
        std::get<BenchModelOptions>(*parse({"bench", "model", "-m", "M", "--placement", value})).engine.whole_experts ==
        whole);
    CHECK(plan({"-m", "M"}, "CPUINFER_PLACEMENT", value).model.engine.whole_experts == whole);
  }
  CHECK_FALSE(plan({"-m", "M"}).model.engine.whole_experts);
  CHECK(usage_error({"-m", "M", "--placement", "both"}) == "--placement is 'both'; it must be one of slice, expert");
}

TEST_CASE("options of plan that do not go together") {
  CHECK(usage_error({"plan"}) == "no model: give --model with a directory or a name, or --synthetic NAME");
  CHECK(usage_error({"plan", "-m", "M", "--synthetic", "tiny"}) == "--model and --synthetic exclude each other");
  CHECK(usage_error({"plan", "-m", "M", "--layers", "2"}) == "--layers changes a synthetic model only");
  CHECK(usage_error({"plan", "-m", "M", "--node-memory", "1G"}) ==
        "--node-memory is of a machine that is not there: give --topology too");
  CHECK(usage_error({"plan", "-m", "M", "--topology", "numa:2 core:2 pu:1"}) ==
        "how much memory the nodes of --topology have is not said: give --node-memory");
  CHECK(plan({"-m", "M", "--topology", "numa:2(memory=8GB) core:2 pu:1"}).node_memory.empty());
  CHECK(
      usage_error({"plan", "-m", "M", "--node-memory", "1G,x"}).starts_with("--node-memory is 'x'; it must be a size"));
  CHECK(usage_error({"plan", "-m", "M", "--core-bandwidth", "15"}).starts_with("--core-bandwidth is '15'"));
}
