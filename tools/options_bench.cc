// The options of `cpuinfer bench`. One benchmark is one row of kBenchmarks with its function.
#include <algorithm>

#include "tools/option_groups.h"

namespace cpuinfer::tools {
namespace {

Result<CommandLine> parse_bench_host(const std::vector<std::string>& arguments, const Environment& environment) {
  BenchHostOptions o;
  OptionTable table("cpuinfer bench host",
                    "Measure what bounds every model on this machine: read bandwidth of memory,\n"
                    "arithmetic peaks, cost of a barrier, speed of the disk.");
  table.group("Machine");
  add_workers(table, o.threads, o.machine);
  add_isa(table, o.isa);
  table.group("Measurement");
  table.value("--buffer", "SIZE", "Memory read per node [1GiB, or an eighth of what is\nfree]",
              size_into(o.buffer_bytes), Variable::kNo);
  table.value("-m,--model", "NAME|DIR", "Read this model's files for the disk's speed", text_into(o.model),
              Variable::kNo);
  table.value("--disk", "DIR",
              "Write a file here and read it, if there is no --model\n[the directory for temporary files]",
              text_into(o.disk), Variable::kNo);
  table.flag("--quick", "Small and short: shows that it works, not how fast", [&o] { o.quick = true; }, Variable::kNo);
  add_json(table, o.json, "Print JSON");
  add_console(table, o.console, environment);
  TRY_ASSIGN(const std::optional<std::string> help, table.parse(arguments, environment));
  if (help) return ShowText{*help};
  if (!o.model.empty() && o.disk) return table.usage("--model and --disk exclude each other");
  return o;
}

Result<CommandLine> parse_bench_kernels(const std::vector<std::string>& arguments, const Environment& environment) {
  BenchKernelsOptions o;
  OptionTable table("cpuinfer bench kernels",
                    "Measure every kernel that this CPU has at the matrices of published models, beside\n"
                    "this machine's limits and oneDNN, and compare its results.");
  table.group("Products");
  table.value("--shapes", "MODEL", "30b (Qwen3-30B-A3B), 235b (Qwen3-235B-A22B) or all\n[30b]",
              choice_into(o.shapes, {{"30b", std::string("30b")}, {"235b", "235b"}, {"all", "all"}}), Variable::kNo);
  table.value("--m", "LIST", "Rows of activations, separated by commas [1,2,4 to 4k]", counts_into(o.rows, 1, 4096),
              Variable::kNo);
  table.value("--kernel", "NAME", "Only the rows of this name, and oneDNN", text_into(o.kernel), Variable::kNo);
  table.group("Machine");
  table.value("-t,--threads", "N", "Worker threads, each with its part of every product\n[1]",
              count_into(o.threads, 1, kMaxThreads), Variable::kNo);
  add_placement(table, o.machine, Variable::kNo);
  add_isa(table, o.isa);
  table.group("Output");
  table.flag("--quick", "Small and short: shows that it works, not how fast", [&o] { o.quick = true; }, Variable::kNo);
  add_json(table, o.json, "Print JSON");
  add_console(table, o.console, environment);
  TRY_ASSIGN(const std::optional<std::string> help, table.parse(arguments, environment));
  if (help) return ShowText{*help};
  return o;
}

Result<CommandLine> parse_bench_load(const std::vector<std::string>& arguments, const Environment& environment) {
  BenchLoadOptions o;
  OptionTable table("cpuinfer bench load",
                    "Measure how fast a checkpoint is loaded with a cold page cache, beside how fast the\n"
                    "disk is read; both in turns. Needs memory for the weights.");
  table.group("Model");
  table.value("-m,--model", "NAME|DIR", "Model: a directory, or a name (see 'Models' in cpuinfer(1))",
              text_into(o.model));
  table.value("--memory-limit", "SIZE", "Use at most this much memory: 512MiB, 1.5TiB",
              size_into(o.memory_limit_bytes));
  table.group("Machine");
  add_workers(table, o.threads, o.machine);
  table.group("Measurement");
  table.value("--repeat", "R", "Loads, beside the first into new memory [3]", count_into(o.repeats, 0, 1000),
              Variable::kNo);
  table.flag("--warm", "Load from the page cache instead, without the disk", [&o] { o.warm = true; }, Variable::kNo);
  table.flag("--quick", "Short samples: shows that it works, not how fast", [&o] { o.quick = true; }, Variable::kNo);
  add_json(table, o.json, "Print JSON");
  add_console(table, o.console, environment);
  TRY_ASSIGN(const std::optional<std::string> help, table.parse(arguments, environment));
  if (help) return ShowText{*help};
  if (o.model.empty()) return table.usage("no model: give --model with a directory or a name");
  return o;
}

constexpr int64_t kMostTokens = 1 << 27;  // of a depth or a prompt: far beyond any context

Result<CommandLine> parse_bench_model(const std::vector<std::string>& arguments, const Environment& environment) {
  BenchModelOptions o;
  std::optional<int64_t> decoded;
  std::vector<int64_t> prompts;
  OptionTable table("cpuinfer bench model",
                    "Measure how fast a model decodes and prefills, beside what bounds it on this machine.\n"
                    "Lists are separated by commas; every combination is a case. What does not fit into\n"
                    "memory is said and left out.");
  table.group("Model");
  table.value("-m,--model", "NAME|DIR", "Model: a directory, or a name (see 'Models' in cpuinfer(1))",
              text_into(o.model),
              Variable::kNo);  // a variable must not contradict --synthetic
  table.value("--synthetic", "NAME",
              "Instead: random weights in memory with the sizes of a\npublished model, as 'synth'",
              text_into(o.synthetic), Variable::kNo);
  table.value("--layers", "N", "Layers of a synthetic model, instead of the published\nnumber",
              count_into(o.layers, 1, 1024), Variable::kNo);
  table.value("--seed", "N", "Of the weights of a synthetic model [0]", seed_into(o.seed), Variable::kNo);
  table.value("--memory-limit", "SIZE", "Use at most this much memory: 512MiB, 1.5TiB",
              size_into(o.engine.memory_limit_bytes));
  table.group("Cases");
  table.value("--depth", "LIST", "Tokens in the cache before; made up, not computed [0]",
              counts_into(o.cases.depths, 0, kMostTokens), Variable::kNo);
  table.value("--batch", "LIST", "Sequences that decode together [1]", counts_into(o.cases.batches, 1, 65536),
              Variable::kNo);
  table.value("--experts", "LIST", "Experts per token [config.json's]", counts_into(o.cases.experts, 1, 65536),
              Variable::kNo);
  table.value("--tg", "N", "Decode steps of a repeat; 0: no decode [32]", count_into(decoded, 0, kMostTokens),
              Variable::kNo);
  table.value("--pp", "LIST", "Tokens of prefill, one sequence; 0: none [512]", counts_into(prompts, 0, kMostTokens),
              Variable::kNo);
  table.value("--repeat", "R", "Repeats of each case [5]", count_into(o.repeats, 1, 1000), Variable::kNo);
  add_machine(table, o.engine);
  table.group("Output");
  table.flag(
      "--profile", "Print what each phase of a step took, too, and what\ncounting that costs",
      [&o] { o.profile = true; }, Variable::kNo);
  table.flag(
      "--quick", "Few tokens, short samples: shows that it works, not\nhow fast", [&o] { o.quick = true; },
      Variable::kNo);
  add_json(table, o.json, "Print JSON");
  add_console(table, o.console, environment);
  TRY_ASSIGN(const std::optional<std::string> help, table.parse(arguments, environment));
  if (help) return ShowText{*help};
  if (o.model.empty() == o.synthetic.empty())
    return table.usage(o.model.empty() ? "no model: give --model with a directory or a name, or --synthetic NAME"
                                       : "--model and --synthetic exclude each other");
  if (o.layers && o.synthetic.empty()) return table.usage("--layers changes a synthetic model only");
  if (o.repeats == 0) o.repeats = o.quick ? 2 : 5;
  o.cases.decoded = decoded.value_or(o.quick ? 4 : 32);
  if (prompts.empty()) prompts = {o.quick ? 16 : 512};
  std::erase(prompts, 0);
  o.cases.prompts = std::move(prompts);
  if (o.cases.decoded == 0 && o.cases.prompts.empty())
    return table.usage("there is nothing to measure: --tg and --pp are 0");
  return o;
}

Result<CommandLine> parse_bench_store(const std::vector<std::string>& arguments, const Environment& environment) {
  BenchStoreOptions o;
  OptionTable table("cpuinfer bench store",
                    "Measure the time to the first token after a prefix that is computed, read from a KV store,\n"
                    "or in memory, and how fast the store is written and read, beside the disk.");
  table.group("Model");
  table.value("-m,--model", "NAME|DIR", "Model: a directory, or a name (see 'Models' in cpuinfer(1))",
              text_into(o.model));
  table.value("--synthetic", "NAME",
              "Instead of --model: random weights in the sizes of a\npublished model, as 'synth'",
              text_into(o.synthetic), Variable::kNo);
  table.value("--layers", "N", "Layers of a synthetic model", count_into(o.layers, 1, 1024), Variable::kNo);
  table.value("--memory-limit", "SIZE", "Use at most this much memory: 512MiB, 1.5TiB",
              size_into(o.engine.memory_limit_bytes));
  add_kv_store(table, o.engine);
  add_machine(table, o.engine);
  table.group("Measurement");
  table.value("--prefix", "LIST", "Tokens of the prefixes [32k,128k]", counts_into(o.prefixes, 256, kMostTokens),
              Variable::kNo);
  table.flag("--quick", "Short samples: shows that it works, not how fast", [&o] { o.quick = true; }, Variable::kNo);
  add_json(table, o.json, "Print JSON");
  add_console(table, o.console, environment);
  TRY_ASSIGN(const std::optional<std::string> help, table.parse(arguments, environment));
  if (help) return ShowText{*help};
  TRY(check_kv_store(table, o.engine));
  if (o.model.empty() == o.synthetic.empty()) return table.usage("give either --model or --synthetic NAME");
  if (o.layers && o.synthetic.empty()) return table.usage("--layers changes a synthetic model only");
  if (o.engine.kv_store.directory.empty())
    return table.usage("no store: give --kv-store with a new directory on the disk to measure");
  return o;
}

struct BenchmarkRow {
  const char* name;
  const char* summary;
  ParseCommand* parse;
};

constexpr BenchmarkRow kBenchmarks[] = {
    {"host", "Read bandwidth, arithmetic peaks, barriers, disk", parse_bench_host},
    {"kernels", "Every kernel at the matrices of models, beside oneDNN", parse_bench_kernels},
    {"load", "Loading of a checkpoint, beside the disk", parse_bench_load},
    {"model", "Tokens per second of a model, beside what bounds it", parse_bench_model},
    {"store", "Time to the first token with a KV store, beside the disk", parse_bench_store},
};

std::string list_benchmarks() {
  std::string text;
  for (const BenchmarkRow& row : kBenchmarks) text += (text.empty() ? "" : ", ") + std::string(row.name);
  return text;
}

}  // namespace

Result<CommandLine> parse_bench(const std::vector<std::string>& arguments, const Environment& environment) {
  if (arguments.empty())
    return fail(
        ErrorCode::kUsage,
        format("bench needs a name: one of {}; 'cpuinfer bench NAME --help' lists the options", list_benchmarks()));
  const std::string& name = arguments[0];
  if (name == "--help" || name == "-h") {
    std::string text =
        "Measure this machine and what runs on it.\nUsage: cpuinfer bench NAME [OPTIONS]\n\nBenchmarks:\n";
    for (const BenchmarkRow& row : kBenchmarks) text += format("  {:<14}{}\n", row.name, row.summary);
    return ShowText{text + "\n'cpuinfer bench NAME --help' lists the options of one.\n"};
  }
  std::vector<std::string> names;
  for (const BenchmarkRow& row : kBenchmarks) {
    if (name == row.name) return row.parse({arguments.begin() + 1, arguments.end()}, environment);
    names.push_back(row.name);
  }
  const std::string near = nearest_name(name, names);
  return fail(ErrorCode::kUsage, format("unknown benchmark '{}'{}; it must be one of {}", name,
                                        near.empty() ? "" : format("; did you mean '{}'?", near), list_benchmarks()));
}

}  // namespace cpuinfer::tools
