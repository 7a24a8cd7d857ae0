#include "tools/option_groups.h"

namespace cpuinfer::tools {

void add_console(OptionTable& table, ConsoleOptions& options, const Environment& environment) {
  options.color = !environment("NO_COLOR").has_value();
  table.group("General");
  table.value("--progress", "HOW", "auto, bar, plain (a line now and then) or none",
              choice_into(options.progress, {{"auto", ProgressMode::kAuto},
                                             {"bar", ProgressMode::kBar},
                                             {"plain", ProgressMode::kPlain},
                                             {"none", ProgressMode::kNone}}));
  table.flag("-q,--quiet", "Only warnings and errors on stderr", [&options] { options.quiet = true; });
  table.flag("-v,--verbose", "Say more on stderr", [&options] { options.verbose = true; });
}

void add_json(OptionTable& table, bool& json, const char* help) {
  table.flag("--json", help, [&json] { json = true; }, Variable::kNo);
}

void add_model_name(OptionTable& table, std::string& model) {
  table.value("-m,--model", "NAME|DIR", "Model: a directory, or a name (see 'Models' in cpuinfer(1))",
              text_into(model));
}

void add_isa(OptionTable& table, std::string& isa) {
  table.value("--isa", "LEVEL",
              "Use no instructions beyond this level: reference,\navx2, avx512, avx512_bf16, amx [all the CPU has]",
              text_into(isa));
}

namespace {

/// "2": the first two nodes; "0,2", "1-1": these.
Setter nodes_into(numa::MachineOptions& machine) {
  return [&machine](std::string_view name, const std::string& value) -> Result<void> {
    machine.nodes = 0;
    machine.node_ids.clear();
    if (value.find_first_of(",-:") == value.npos) return count_into(machine.nodes, 1, 1024)(name, value);
    TRY_ASSIGN(machine.node_ids, parse_numbers(name, value, "a number of nodes, or a list of them such as 0,2 or 1-1"));
    return {};
  };
}

}  // namespace

void add_placement(OptionTable& table, numa::MachineOptions& machine, Variable variable) {
  table.value("--nodes", "N|LIST", "Memory nodes: the first N, or these: 0,2 or 1-1 [all]", nodes_into(machine),
              variable);
  table.value(
      "--cores", "LIST", "CPUs, by their numbers as for taskset: 0-15,32-47 [all]",
      [&machine](std::string_view name, const std::string& value) -> Result<void> {
        TRY_ASSIGN(machine.cpu_ids, parse_numbers(name, value, "a list of CPUs such as 0-15,32-47"));
        return {};
      },
      variable);
  table.flag(
      "--no-pin", "Let the system choose where threads run and memory\nlies", [&machine] { machine.pin = false; },
      variable);
  table.value("--simulate-nodes", "N", "For tests: deal threads and memory to N pretended nodes",
              count_into(machine.simulated_nodes, 1, 1024), variable);
}

void add_workers(OptionTable& table, int& threads, numa::MachineOptions& machine) {
  table.value("-t,--threads", "N", "Worker threads [one per physical core]", count_into(threads, 1, kMaxThreads));
  table.flag("--smt", "One thread per CPU instead of one per physical core", [&machine] { machine.smt = true; });
  add_placement(table, machine);
}

void add_model(OptionTable& table, ModelOptions& options) {
  run::EngineOptions& engine = options.engine;
  table.group("Model");
  add_model_name(table, options.model);
  table.value("-c,--ctx", "TOKENS",
              "Context: prompt and answer together; 256k = 262144\n[the model's limit, at most 32k]",
              count_into(engine.context_tokens, 1, INT64_MAX));
  table.value("--experts", "K", "Experts per token, instead of config.json's number",
              count_into(engine.experts, 1, INT32_MAX));
  table.value("--rope-scaling", "TYPE:FACTOR",
              "default, linear:F, dynamic:F, yarn:F[:ORIGINAL], or auto:\nyarn where a sequence needs it; instead of "
              "config.json's",
              [&engine](std::string_view name, const std::string& value) -> Result<void> {
                engine.rope.reset();
                engine.rope_by_length = value == "auto";
                if (engine.rope_by_length) return {};
                TRY_ASSIGN(engine.rope, parse_rope_scaling(name, value));
                return {};
              });
  table.value("--weights", "WHERE",
              "memory, or stream: of a packed model ('pack'), read what\ndoes not fit during steps [memory]",
              choice_into(engine.stream_weights, {{"memory", false}, {"stream", true}}));
  table.value("--memory-limit", "SIZE", "Use at most this much memory: 512MiB, 1.5TiB",
              size_into(engine.memory_limit_bytes));
  add_machine(table, engine);
}

void add_machine(OptionTable& table, run::EngineOptions& engine) {
  table.group("Machine");
  add_workers(table, engine.threads, engine.machine);
  table.value("--placement", "HOW", "slice (of every expert on each node) or expert (each\nwhole on one node) [slice]",
              choice_into(engine.whole_experts, {{"slice", false}, {"expert", true}}));
  table.value("--expert-usage", "FILE", "Balance whole experts by these counts (JSON)",
              text_into(engine.expert_usage_file));
  table.value("--chunk", "TOKENS", "Most prompt tokens in one step [512]; changes no result",
              count_into(engine.chunk_tokens, 1, 65536));
  add_isa(table, engine.isa);
  table.value("--numerics", "PROFILE", "auto, dp or amx: the order of additions, see\ndocs/numerics.md",
              text_into(engine.numerics));
  table.value("--gemm", "NAME", "Matrix kernel by name ('doctor' lists them) [auto]", text_into(engine.gemm));
}

void add_kv_store(OptionTable& table, run::EngineOptions& engine) {
  table.group("KV store (keys and values of prompts on disk)");
  table.value("--kv-store", "DIR",
              "Begin prompts with what DIR has of them, and keep\nwhat is computed there: same bits, no waiting",
              text_into(engine.kv_store.directory));
  table.value("--kv-store-size", "SIZE",
              "The most that DIR may take; then pages that were not\nused for longest go "
              "[what the disk has]",
              size_into(engine.kv_store.size_bytes));
  table.value("--kv-tier", "WHERE",
              "memory, or disk: what memory has no room for is kept\nin DIR and read again for every token: exact, "
              "slow [memory]",
              choice_into(engine.kv_on_disk, {{"memory", false}, {"disk", true}}));
}

Result<void> check_kv_store(const OptionTable& table, const run::EngineOptions& engine) {
  if (engine.kv_store.size_bytes != 0 && engine.kv_store.directory.empty())
    return table.usage("--kv-store-size is the size of a KV store: give its directory with --kv-store");
  if (engine.kv_on_disk && engine.kv_store.directory.empty())
    return table.usage("--kv-tier disk keeps pages in a KV store: give its directory with --kv-store");
  return {};
}

Result<void> require_model(const OptionTable& table, const std::string& model) {
  if (model.empty()) return table.usage("no model: give --model with a directory or a name");
  return {};
}

}  // namespace cpuinfer::tools
