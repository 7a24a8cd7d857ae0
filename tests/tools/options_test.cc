// The command line as data, without running anything.
#include "tools/options.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <map>

#include "base/format.h"
#include "tools/exit_codes.h"
#include "tools/option_table.h"
#include "tools/option_values.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;

namespace {

using Variables = std::map<std::string, std::string>;

Result<CommandLine> parse(const std::vector<std::string>& arguments, const Variables& variables = {}) {
  return parse_command_line(arguments, [&](const char* name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional<std::string>(found->second);
  });
}

RunOptions parse_run(const std::vector<std::string>& arguments, const Variables& variables = {}) {
  const Result<CommandLine> command = parse(arguments, variables);
  REQUIRE_MESSAGE(command.has_value(), (command ? "" : command.error().message));
  REQUIRE(std::holds_alternative<RunOptions>(*command));
  return std::get<RunOptions>(*command);
}

std::string usage_error(const std::vector<std::string>& arguments, const Variables& variables = {}) {
  const Result<CommandLine> command = parse(arguments, variables);
  REQUIRE_FALSE(command.has_value());
  CHECK(command.error().code == ErrorCode::kUsage);
  return command.error().message;
}

std::string help_of(const std::string& command) {
  std::vector<std::string> arguments;  // "bench host" is two
  for (size_t start = 0; start < command.size();) {
    const size_t space = std::min(command.find(' ', start), command.size());
    arguments.push_back(command.substr(start, space - start));
    start = space + 1;
  }
  arguments.push_back("--help");
  const Result<CommandLine> parsed = parse(arguments);
  REQUIRE(parsed.has_value());
  return std::get<ShowText>(*parsed).text;
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("counts take binary suffixes") {
  CHECK(parse_count("--ctx", "262144", 1, INT64_MAX) == 262144);
  CHECK(parse_count("--ctx", "256k", 1, INT64_MAX) == 262144);
  CHECK(parse_count("--ctx", "256K", 1, INT64_MAX) == 262144);
  CHECK(parse_count("--ctx", "1.5k", 1, INT64_MAX) == 1536);
  CHECK(parse_count("--ctx", "1M", 1, INT64_MAX) == 1048576);
  for (const char* wrong : {"", "k", "12x", "1 k", "0x10", "-1", "0", "1.3", "1e400k", "nank", "99999999999999999999",
                            "9999999999G", "+5", " 5"}) {
    INFO(wrong);
    const auto value = parse_count("--ctx", wrong, 1, INT64_MAX);
    REQUIRE_FALSE(value.has_value());
    CHECK(value.error().code == ErrorCode::kUsage);
    CHECK(value.error().message == format("--ctx is '{}'; it must be a whole number, 1 or more (k = 1024)", wrong));
  }
  CHECK(parse_count("--logprobs", "21", 0, 20).error().message ==
        "--logprobs is '21'; it must be a whole number between 0 and 20 (k = 1024)");
}

TEST_CASE("sizes are powers of 1024") {
  CHECK(parse_size("--memory-limit", "1048576") == 1_MiB);
  CHECK(parse_size("--memory-limit", "1MiB") == 1_MiB);
  CHECK(parse_size("--memory-limit", "1mb") == 1_MiB);
  CHECK(parse_size("--memory-limit", "64G") == 64_GiB);
  CHECK(parse_size("--memory-limit", "1.5TiB") == 1536_GiB);
  CHECK(parse_size("--memory-limit", "512B") == 512);
  for (const char* wrong : {"", "B", "iB", "0", "-1G", "1Q", "0.3", "1e30T"}) {
    INFO(wrong);
    REQUIRE_FALSE(parse_size("--memory-limit", wrong).has_value());
    CHECK(contains(parse_size("--memory-limit", wrong).error().message,
                   "it must be a size such as 512MiB, 64G or 1.5TiB"));
  }
}

TEST_CASE("rope scalings") {
  const auto yarn = parse_rope_scaling("--rope-scaling", "yarn:4:32k");
  REQUIRE(yarn.has_value());
  CHECK(yarn->type == model::RopeType::kYarn);
  CHECK(yarn->factor == 4);
  CHECK(yarn->original_max_positions == 32768);
  CHECK(parse_rope_scaling("--rope-scaling", "yarn:2.5")->factor == 2.5);
  CHECK(parse_rope_scaling("--rope-scaling", "linear:2")->type == model::RopeType::kLinear);
  CHECK(parse_rope_scaling("--rope-scaling", "dynamic:2")->type == model::RopeType::kDynamic);
  CHECK(parse_rope_scaling("--rope-scaling", "default")->type == model::RopeType::kDefault);
  for (const char* wrong : {"", "yarn", "yarn:", "yarn:0.5", "yarn:nan", "yarn:4:", "yarn:4:0", "yarn:4:1:1",
                            "linear:2:3", "default:1", "su:2", "yarn:inf"}) {
    INFO(wrong);
    REQUIRE_FALSE(parse_rope_scaling("--rope-scaling", wrong).has_value());
    CHECK(parse_rope_scaling("--rope-scaling", wrong).error().code == ErrorCode::kUsage);
  }
  CHECK(contains(parse_rope_scaling("--rope-scaling", "su:2").error().message,
                 "it must be auto, default, linear:FACTOR, dynamic:FACTOR or yarn:FACTOR[:ORIGINAL]"));
  CHECK(contains(parse_rope_scaling("--rope-scaling", "yarn:0.5").error().message, "a factor of 1 or more"));
}

TEST_CASE("every option arrives") {
  const RunOptions o = parse_run({"-m",
                                  "M",
                                  "-c",
                                  "8k",
                                  "--experts",
                                  "16",
                                  "--rope-scaling",
                                  "linear:2",
                                  "-t",
                                  "3",
                                  "--nodes",
                                  "2",
                                  "--cores",
                                  "0-2,8",
                                  "--smt",
                                  "--no-pin",
                                  "--simulate-nodes",
                                  "4",
                                  "--chunk",
                                  "64",
                                  "--isa",
                                  "avx2",
                                  "--numerics",
                                  "dp",
                                  "--gemm",
                                  "portable",
                                  "--memory-limit",
                                  "2G",
                                  "--temp",
                                  "0.5",
                                  "--top-k",
                                  "20",
                                  "--top-p",
                                  "0.9",
                                  "--min-p",
                                  "0.1",
                                  "--presence-penalty",
                                  "-0.5",
                                  "--frequency-penalty",
                                  "0.25",
                                  "--repetition-penalty",
                                  "1.5",
                                  "--seed",
                                  "18446744073709551615",
                                  "-n",
                                  "7",
                                  "--stop",
                                  "A",
                                  "--stop",
                                  "B b",
                                  "--logprobs",
                                  "3",
                                  "--json",
                                  "--system",
                                  "S",
                                  "--no-think",
                                  "--prompt",
                                  "-hello [1,2] {}",
                                  "--progress",
                                  "none",
                                  "-q"});
  const run::EngineOptions& e = o.model.engine;
  CHECK(o.model.model == "M");
  CHECK(e.context_tokens == 8192);
  CHECK(e.experts == 16);
  CHECK(e.rope->factor == 2);
  CHECK(e.threads == 3);
  CHECK(e.machine ==
        numa::MachineOptions{.nodes = 2, .cpu_ids = {0, 1, 2, 8}, .simulated_nodes = 4, .smt = true, .pin = false});
  CHECK(e.chunk_tokens == 64);
  CHECK(e.isa == "avx2");
  CHECK(e.numerics == "dp");
  CHECK(e.gemm == "portable");
  CHECK(e.memory_limit_bytes == 2_GiB);
  CHECK(o.sampling.temperature == 0.5f);
  CHECK(o.sampling.top_k == 20);
  CHECK(o.sampling.top_p == 0.9f);
  CHECK(o.sampling.min_p == 0.1f);
  CHECK(o.sampling.presence_penalty == -0.5f);
  CHECK(o.sampling.frequency_penalty == 0.25f);
  CHECK(o.sampling.repetition_penalty == 1.5f);
  CHECK(o.sampling.seed == UINT64_MAX);
  CHECK(o.max_tokens == 7);
  CHECK(o.stop_strings == std::vector<std::string>{"A", "B b"});
  CHECK(o.logprobs == 3);
  CHECK(o.json);
  CHECK(o.system == "S");
  CHECK(o.think == false);
  CHECK(o.prompt == "-hello [1,2] {}");
  CHECK(o.console.progress == ProgressMode::kNone);
  CHECK(o.console.quiet);
  CHECK(o.console.color);
}

TEST_CASE("nodes by number or as a list, CPUs as a list") {
  const auto machine = [](const std::vector<std::string>& arguments, const Variables& variables = {}) {
    std::vector<std::string> all = {"-m", "M"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return parse_run(all, variables).model.engine.machine;
  };
  CHECK(machine({}) == numa::MachineOptions{});
  CHECK(machine({"--nodes", "0,2"}).node_ids == std::vector<int>{0, 2});
  CHECK(machine({"--nodes", "1-1"}).node_ids == std::vector<int>{1});
  CHECK(machine({"--nodes", "0-1", "--nodes", "3"}) == numa::MachineOptions{.nodes = 3});
  CHECK(machine({"--cores", "0-6:2"}).cpu_ids == std::vector<int>{0, 2, 4, 6});
  CHECK(machine({}, {{"CPUINFER_NODES", "0-2"}}).node_ids.size() == 3);
  CHECK_FALSE(machine({}, {{"CPUINFER_NO_PIN", "1"}}).pin);
  CHECK(machine({}, {{"CPUINFER_SMT", "1"}}).smt);
  for (const char* command : {"plan", "score"}) {
    const Result<CommandLine> parsed = parse({command, "-m", "M", "--cores", "5", "--nodes", "0,1", "--no-pin"});
    REQUIRE(parsed.has_value());
    const auto& options = std::string_view(command) == "plan" ? std::get<PlanOptions>(*parsed).model.engine.machine
                                                              : std::get<ScoreOptions>(*parsed).model.engine.machine;
    CHECK(options == numa::MachineOptions{.node_ids = {0, 1}, .cpu_ids = {5}, .pin = false});
  }
  for (const char* name : {"host", "kernels", "model"})
    for (const char* option : {"--nodes N|LIST", "--cores LIST", "--no-pin", "--simulate-nodes N"})
      CHECK(contains(help_of(format("bench {}", name)), option));
  CHECK(usage_error({"-m", "M", "--cores", "1,,2"}) ==
        "--cores is '1,,2'; it must be a list of CPUs such as 0-15,32-47");
  CHECK(contains(usage_error({"-m", "M", "--cores="}), "--cores"));
  CHECK(usage_error({"-m", "M", "--nodes", "3-1"}) ==
        "--nodes is '3-1'; it must be a number of nodes, or a list of them such as 0,2 or 1-1");
  CHECK(contains(usage_error({"-m", "M", "--nodes", "0"}), "it must be a whole number between 1 and 1024"));
  CHECK(contains(usage_error({"-m", "M", "--simulate-nodes", "x"}), "it must be a whole number between 1 and 1024"));
}

TEST_CASE("texts are taken literally") {
  for (const char* text : {"", " ", "[a,b]", "{}", "[]", "\"quoted\"", "'", "--", "-", "--ctx", "%s", "a=b",
                           "line\nbreak", "caf\xc3\xa9", "--version"}) {
    INFO(text);
    CHECK(parse_run({"-m", "M", "--prompt", text}).prompt == text);
    if (*text != '\0') CHECK(parse_run({"-m", "M", "--prompt=" + std::string(text)}).prompt == text);
    CHECK(parse_run({"-m", "M", "--system", text}).system == text);
    if (*text != '\0')
      CHECK(parse_run({"-m", "M", "--stop", text, "--stop", "x"}).stop_strings == std::vector<std::string>{text, "x"});
  }
  CHECK(parse_run({"-m", "M", "--ctx", "1k", "--ctx", "2k"}).model.engine.context_tokens ==
        2048);  // the last one counts
}

TEST_CASE("variables stand behind options") {
  CHECK(parse_run({"-m", "M", "--greedy"}, {{"CPUINFER_TEMPERATURE", "0.6"}}).sampling.greedy);
  CHECK(parse_run({"-m", "M", "--temp", "0.5"}, {{"CPUINFER_GREEDY", "1"}}).sampling.temperature == 0.5f);
  CHECK_FALSE(parse_run({"-m", "M", "--temperature=0.5"}, {{"CPUINFER_GREEDY", "1"}}).sampling.greedy);
  CHECK(parse_run({}, {{"CPUINFER_MODEL", "V"}}).model.model == "V");
  CHECK(parse_run({"-m", "M"}, {{"CPUINFER_MODEL", "V"}}).model.model == "M");
  CHECK(parse_run({"-m", "M"}, {{"CPUINFER_CTX", "256k"}}).model.engine.context_tokens == 262144);
  CHECK(parse_run({"-m", "M", "--ctx", "4k"}, {{"CPUINFER_CTX", "256k"}}).model.engine.context_tokens == 4096);
  CHECK(parse_run({"-m", "M"}, {{"CPUINFER_CTX", ""}}).model.engine.context_tokens == 0);
  CHECK(parse_run({"-m", "M"}, {{"CPUINFER_ISA", "avx2"}}).model.engine.isa == "avx2");
  CHECK(parse_run({"-m", "M"}, {{"CPUINFER_ROPE_SCALING", "yarn:4"}}).model.engine.rope->factor == 4);
  CHECK(parse_run({"-m", "M"}, {{"CPUINFER_ROPE_SCALING", "auto"}}).model.engine.rope_by_length);
  // The last one counts, also of two kinds.
  const auto last_rope = [](const char* first, const char* second) {
    return parse_run({"-m", "M", "--rope-scaling", first, "--rope-scaling", second}).model.engine;
  };
  CHECK(last_rope("yarn:4", "auto").rope_by_length);
  CHECK_FALSE(last_rope("yarn:4", "auto").rope);
  CHECK_FALSE(last_rope("auto", "yarn:4").rope_by_length);
  CHECK(last_rope("auto", "yarn:4").rope->factor == 4);
  CHECK(parse_run({"-m", "M"}, {{"CPUINFER_QUIET", "yes"}}).console.quiet);
  CHECK_FALSE(parse_run({"-m", "M"}, {{"CPUINFER_QUIET", "0"}}).console.quiet);
  CHECK_FALSE(parse_run({"-m", "M"}, {{"NO_COLOR", ""}}).console.color);
  CHECK_FALSE(parse_run({"-m", "M"}, {{"CPUINFER_PROMPT", "x"}}).prompt.has_value());  // belongs to one call
  CHECK(usage_error({"-m", "M"}, {{"CPUINFER_CTX", "many"}}) ==
        "CPUINFER_CTX is 'many'; it must be a whole number, 1 or more (k = 1024)");
  CHECK(contains(usage_error({"-m", "M"}, {{"CPUINFER_QUIET", "maybe"}}),
                 "CPUINFER_QUIET is 'maybe'; it must be 1 (or true, yes, on)"));
}

TEST_CASE("near misses are named") {
  CHECK(usage_error({"-m", "M", "--ctxx", "5"}) ==
        "unknown option '--ctxx'; did you mean '--ctx'?; 'cpuinfer --help' lists the options");
  CHECK(contains(usage_error({"-m", "M", "--tempreature=1"}), "did you mean '--temperature'?"));
  CHECK(contains(usage_error({"-m", "M", "--max-token", "1"}), "did you mean '--max-tokens'?"));
  CHECK(usage_error({"-m", "M", "--zzzzzzzzz"}) == "unknown option '--zzzzzzzzz'; 'cpuinfer --help' lists the options");
  CHECK(usage_error({"paln", "-m", "M"}) ==
        "unknown command 'paln'; did you mean 'plan'?; 'cpuinfer --help' lists the commands");
  CHECK(usage_error({"xyzzy"}) == "unknown command 'xyzzy'; 'cpuinfer --help' lists the commands");
  CHECK(contains(usage_error({"plan", "-m", "M", "--prompt", "x"}), "unknown option '--prompt'"));
  CHECK(contains(usage_error({"-m", "M", "plan"}), "unexpected argument 'plan'"));
  CHECK(contains(usage_error({"-m", "M", "what is this"}), "text after --prompt"));
}

TEST_CASE("what does not go together") {
  CHECK(contains(usage_error({}), "no model: give --model"));
  CHECK(contains(usage_error({"plan"}), "no model"));
  CHECK(contains(usage_error({"-m", "M", "--prompt", "a", "--prompt-file", "b"}), "exclude each other"));
  CHECK(contains(usage_error({"-m", "M", "--raw", "--system", "s"}), "--raw continues a text"));
  CHECK(contains(usage_error({"-m", "M", "--greedy", "--temp", "1"}), "--greedy and --temperature exclude each other"));
  CHECK(contains(usage_error({"-m", "M", "--no-think", "--think"}), "--think and --no-think exclude each other"));
  CHECK(contains(usage_error({"-m", "M", "--stop", ""}), "--stop is empty"));
  CHECK(contains(usage_error({"-m", "M", "--ctx"}), "--ctx"));
  CHECK(contains(usage_error({"-m", "M", "--progress", "loud"}),
                 "--progress is 'loud'; it must be one of auto, bar, plain, none"));
  CHECK(contains(usage_error({"-m", "M", "--seed", "-1"}),
                 "--seed is '-1'; it must be a whole number between 0 and 18446744073709551615"));
  CHECK(contains(usage_error({"-m", "M", "--temp", "warm"}), "--temperature is 'warm'; it must be a number"));
  CHECK(contains(usage_error({"-m", "M", "--temp", "inf"}), "it must be a number"));
  CHECK(contains(usage_error({"score", "-m", "M", "--file", "a", "--ids", "b"}), "exclude each other"));
  CHECK(contains(usage_error({"synth", "-o", "d"}), "give either a NAME or --config FILE"));
  CHECK(contains(usage_error({"synth", "tiny", "--config", "f", "-o", "d"}), "give either a NAME or --config FILE"));
  CHECK(contains(usage_error({"synth", "tiny"}), "no directory to write to"));
  CHECK(contains(usage_error({"synth", "tiny", "-o", "d", "--dtype", "int8"}), "it must be one of bf16, f16, f32"));
}

TEST_CASE("benchmarks are commands of two words") {
  const Result<CommandLine> command = parse({"bench", "host", "-t", "2", "--nodes", "1", "--isa", "avx2", "--buffer",
                                             "64M", "--disk", "D", "--quick", "--json", "-q"});
  REQUIRE(command.has_value());
  const BenchHostOptions& o = std::get<BenchHostOptions>(*command);
  CHECK(o.threads == 2);
  CHECK(o.machine.nodes == 1);
  CHECK(o.isa == "avx2");
  CHECK(o.buffer_bytes == 64_MiB);
  CHECK(o.disk == "D");
  CHECK(o.quick);
  CHECK(o.json);
  CHECK(o.console.quiet);
  const Result<CommandLine> kernels = parse({"bench", "kernels", "--shapes", "all", "--m", "1,4k", "--kernel",
                                             "portable", "-t", "3", "--isa", "avx2", "--quick"},
                                            {{"CPUINFER_THREADS", "7"}});
  REQUIRE(kernels.has_value());
  const BenchKernelsOptions& k = std::get<BenchKernelsOptions>(*kernels);
  CHECK(k.shapes == "all");
  CHECK(k.rows == std::vector<int>{1, 4096});
  CHECK(k.kernel == "portable");
  CHECK(k.threads == 3);
  CHECK(k.isa == "avx2");
  CHECK(k.quick);
  CHECK_FALSE(k.json);
  CHECK(std::get<BenchKernelsOptions>(*parse({"bench", "kernels"}, {{"CPUINFER_THREADS", "7"}})).threads == 1);
  CHECK(contains(usage_error({"bench", "kernels", "--shapes", "7b"}), "it must be one of 30b, 235b, all"));
  CHECK(contains(usage_error({"bench", "kernels", "--m", "0"}), "between 1 and 4096"));
  const Result<CommandLine> load =
      parse({"bench", "load", "-m", "M", "--repeat", "0", "--warm", "--memory-limit", "1G", "--nodes", "2", "--json"},
            {{"CPUINFER_THREADS", "7"}});
  REQUIRE(load.has_value());
  const BenchLoadOptions& l = std::get<BenchLoadOptions>(*load);
  CHECK(l.model == "M");
  CHECK(l.repeats == 0);
  CHECK(l.warm);
  CHECK(l.memory_limit_bytes == 1_GiB);
  CHECK(l.threads == 7);
  CHECK(l.machine.nodes == 2);
  CHECK(l.json);
  CHECK_FALSE(l.quick);
  CHECK(contains(usage_error({"bench", "load"}), "no model: give --model with a directory or a name"));
  CHECK(contains(usage_error({"bench", "load", "-m", "M", "--repeat", "1001"}), "between 0 and 1000"));
  CHECK(usage_error({"bench"}).starts_with("bench needs a name: one of host"));
  CHECK(usage_error({"bench", "hots"})
            .starts_with("unknown benchmark 'hots'; did you mean 'host'?; it must be one of host"));
  CHECK(usage_error({"bench", "xyzzy"}).starts_with("unknown benchmark 'xyzzy'; it must be one of host"));
  CHECK(usage_error({"bench", "--quick"}).starts_with("unknown benchmark '--quick'"));
  CHECK(contains(usage_error({"bench", "host", "--bufer", "1G"}), "did you mean '--buffer'?"));
  CHECK(usage_error({"bench", "host", "--bufer", "1G"}).ends_with("'cpuinfer bench host --help' lists the options"));
  CHECK(contains(usage_error({"bench", "host", "-m", "M", "--disk", "D"}), "--model and --disk exclude each other"));
  CHECK(contains(usage_error({"bench", "host", "--buffer", "many"}), "it must be a size such as"));
  CHECK(contains(help_of("bench"), "cpuinfer bench NAME --help"));
  CHECK(contains(std::get<ShowText>(*parse({"help", "bench", "host"})).text, "--buffer"));
}

TEST_CASE("lists of counts") {
  std::vector<int> list = {5};
  const Setter set = counts_into(list, 0, 10000);
  CHECK(set("--m", "1,2,4k").has_value());
  CHECK(list == std::vector<int>{1, 2, 4096});
  CHECK(set("--m", "7").has_value());
  CHECK(list == std::vector<int>{7});
  for (const char* wrong : {"", ",", "1,", ",1", "1,,2", "1;2", "1,-2", "1,10001"}) {
    INFO(wrong);
    REQUIRE_FALSE(set("--m", wrong).has_value());
    CHECK(contains(set("--m", wrong).error().message, "it must be a whole number between 0 and 10000"));
  }
}

TEST_CASE("exit codes") {
  CHECK(exit_code(ErrorCode::kUsage, 0) == 2);
  CHECK(exit_code(ErrorCode::kNotFound, 0) == 66);
  CHECK(exit_code(ErrorCode::kBadInput, 0) == 78);
  CHECK(exit_code(ErrorCode::kUnsupported, 0) == 78);
  CHECK(exit_code(ErrorCode::kDoesNotFit, 0) == 78);
  CHECK(exit_code(ErrorCode::kBusy, 0) == 75);
  CHECK(exit_code(ErrorCode::kPermission, 0) == 77);
  CHECK(exit_code(ErrorCode::kInterrupted, 2) == 130);
  CHECK(exit_code(ErrorCode::kInterrupted, 15) == 143);
  CHECK(exit_code(ErrorCode::kRuntime, 0) == 1);
  CHECK(exit_code(ErrorCode::kInternal, 0) == 70);
}

TEST_CASE("the manual and docs/cli.md name every command and option of the help") {
  const auto slurp = [](const char* path) {
    std::ifstream file(std::string(CPUINFER_SOURCE_DIR) + path);
    REQUIRE(file.good());
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  const std::string markdown = slurp("/docs/cli.md");
  std::string manual = slurp("/docs/man/cpuinfer.1");
  int options = 0;
  for (const char* command : {"", "plan", "doctor", "tokenize", "detokenize", "score", "synth", "pack", "bench host",
                              "bench kernels", "bench model"}) {
    const std::string help = help_of(command);
    CHECK(contains(markdown, command));
    CHECK(contains(manual, command));
    for (size_t at = 0; (at = help.find("--", at)) != std::string::npos;) {
      size_t end = at + 2;
      while (end < help.size() && (std::isalpha(static_cast<unsigned char>(help[end])) || help[end] == '-')) ++end;
      const std::string name = help.substr(at, end - at);
      at = end;
      if (name.size() < 4) continue;
      INFO(name);
      CHECK(contains(markdown, name));
      // mdoc: "Fl -name"
      CHECK(contains(manual, "Fl -" + name.substr(2)));
      ++options;
    }
  }
  CHECK(options > 60);
}
