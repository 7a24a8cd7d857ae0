// cpuinfer bench load: how fast a checkpoint is loaded, beside how fast the disk is read.
#include <optional>
#include <string>

#include "bench/load.h"
#include "numa/machine_selection.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/progress.h"
#include "tools/session.h"
#include "tools/signals.h"

namespace cpuinfer::tools {

Result<int> bench_load_command(const BenchLoadOptions& options) {
  Console console(options.console);
  bench::LoadBenchOptions load;
  TRY_ASSIGN(load.model, resolve_model(options.model));
  load.memory_limit_bytes = options.memory_limit_bytes;
  load.repeats = options.repeats;
  load.warm = options.warm;
  if (options.quick) load.disk_seconds = 0.2;
  TRY_ASSIGN(const numa::Selection use, numa::select_from_machine(options.machine, options.threads));
  TRY_ASSIGN(const std::unique_ptr<numa::Team> team, numa::Team::create(use.topology, use.team));
  bench::LoadFigures figures;
  {
    std::string stage;
    std::optional<Progress> progress;
    const bench::LoadBenchWatch watch{
        .cancel = &cancel_flag(), .progress = [&](const char* what, int64_t done, int64_t total) {
          if (stage != what)
            progress.emplace(console, stage = what, stage == "loading" ? ProgressUnit::kBytes : ProgressUnit::kShare);
          progress->update(done, total);
        }};
    TRY_ASSIGN(figures, bench::measure_load(*team, use.topology, load, watch));
  }
  TRY(write_stdout(options.json ? to_json_text(bench::load_json(figures), 2) + "\n" : bench::load_text(figures)));
  return kExitOk;
}

}  // namespace cpuinfer::tools
