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
  add_workers(table, o.threads, o.nodes);
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

struct BenchmarkRow {
  const char* name;
  const char* summary;
  ParseCommand* parse;
};

constexpr BenchmarkRow kBenchmarks[] = {
    {"host", "Read bandwidth, arithmetic peaks, barriers, disk", parse_bench_host},
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
