// Groups of options that commands share, and the tables of all commands.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "tools/option_table.h"
#include "tools/options.h"

namespace cpuinfer::tools {

inline constexpr int kMaxThreads = 8192;

/// --progress, --quiet, --verbose, and NO_COLOR.
void add_console(OptionTable& table, ConsoleOptions& options, const Environment& environment);
void add_json(OptionTable& table, bool& json, const char* help);
/// --model alone.
void add_model_name(OptionTable& table, std::string& model);
void add_isa(OptionTable& table, std::string& isa);
/// --nodes, --cores, --no-pin, --simulate-nodes.
void add_placement(OptionTable& table, numa::MachineOptions& machine, Variable variable = Variable::kYes);
/// --threads, --smt, and add_placement().
void add_workers(OptionTable& table, int& threads, numa::MachineOptions& machine);
/// Group Machine: threads, nodes, placement, chunk, kernels.
void add_machine(OptionTable& table, run::EngineOptions& engine);
/// Groups Model and Machine: all of the engine.
void add_model(OptionTable& table, ModelOptions& options);
/// Group KV store: --kv-store, --kv-store-size, --kv-tier; and what is wrong with them together.
void add_kv_store(OptionTable& table, run::EngineOptions& engine);
Result<void> check_kv_store(const OptionTable& table, const run::EngineOptions& engine);
/// kUsage if no model was given.
Result<void> require_model(const OptionTable& table, const std::string& model);

// One function per command: its arguments (without its name) to its options. Errors: kUsage.
using ParseCommand = Result<CommandLine>(const std::vector<std::string>& arguments, const Environment& environment);
ParseCommand parse_run;                                                                // options_run.cc
ParseCommand parse_plan, parse_doctor, parse_tokenize, parse_detokenize, parse_score;  // options_commands.cc
ParseCommand parse_synth, parse_pack;                                                  // options_commands.cc
ParseCommand parse_bench;                                                              // options_bench.cc

}  // namespace cpuinfer::tools
