// cpuinfer doctor: what this machine offers and what hinders it.
#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "base/format.h"
#include "base/json.h"
#include "tools/commands.h"
#include "tools/doctor.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/progress.h"
#include "tools/session.h"
#include "tools/signals.h"

namespace cpuinfer::tools {
namespace {

// Loads the model and takes some steps with it: a prompt at once, and some tokens one by one.
Result<run::PlacementReport> measure_placement(const ModelOptions& options, Console& console) {
  constexpr int64_t kPromptTokens = 16;
  constexpr int kSteps = 4;
  TRY_ASSIGN(const std::unique_ptr<run::Engine> engine, prepare_engine(options));
  TRY(load_engine(*engine, {}, console));
  const int64_t prompt = std::min(kPromptTokens, engine->context_tokens() - kSteps);
  const auto token = [&](int64_t i) { return static_cast<TokenId>(i * 7919 % engine->config().vocab); };
  std::vector<TokenId> tokens;
  for (int64_t i = 0; i < prompt; ++i) tokens.push_back(token(i));
  run::AppendOptions append;
  append.cancel = &cancel_flag();
  TRY_ASSIGN(run::Sequence sequence, engine->start_sequence(std::max<int64_t>(prompt, 0) + kSteps));
  if (!tokens.empty()) TRY(engine->append(sequence, tokens, append));
  for (int i = 0; i < kSteps; ++i) {
    const TokenId next = token(prompt + i);
    TRY(engine->append(sequence, {&next, 1}, append));
  }
  return engine->measure_placement();
}

}  // namespace

Result<int> doctor_command(const DoctorOptions& options) {
  Console console(options.console);
  TRY_ASSIGN(const Machine machine,
             inspect_machine(options.isa, !options.placement, {.cancel = &cancel_flag(), .progress = {}}));
  TRY_ASSIGN(std::vector<Check> checks, diagnose(machine, options.isa));
  std::optional<run::PlacementReport> placement;
  if (options.placement) {
    auto measured = measure_placement(options.model, console);
    if (!measured) {
      // What was found on the machine may be why.
      if (!options.json) TRY(write_stdout(report_text(checks)));
      return std::unexpected(std::move(measured).error());
    }
    placement = std::move(*measured);
    checks.push_back({"placement", placement->is_good() ? Health::kOk : Health::kWarn, placement->sentence(),
                      placement->is_good() ? "" : "mend the cause, then start again: pages stay where they are"});
  }
  if (options.json) {
    Json json = report_json(checks);
    if (placement) {
      const Json measured = placement->json();
      for (const char* key : {"placement", "local_percent", "workers", "cause"}) json.set(key, *measured.find(key));
    }
    TRY(write_stdout(to_json_text(json, 2) + "\n"));
  } else {
    TRY(write_stdout(report_text(checks)));
    if (placement) TRY(write_stdout(format("\n{}\n", placement->table())));
  }
  return is_usable(checks) ? kExitOk : kExitRuntime;
}

}  // namespace cpuinfer::tools
