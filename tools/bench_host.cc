// cpuinfer bench host: what bounds every model on this machine.
#include <cstdlib>
#include <optional>

#include "bench/host.h"
#include "bench/host_report.h"
#include "numa/machine_selection.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/progress.h"
#include "tools/session.h"
#include "tools/signals.h"

namespace cpuinfer::tools {
namespace {

/// Where a file to read is made if nothing else is said: on a disk, which /tmp often is not.
std::string default_disk_directory() {
  const char* directory = std::getenv("TMPDIR");
  return directory != nullptr && *directory != '\0' ? directory : "/var/tmp";
}

}  // namespace

Result<int> bench_host_command(const BenchHostOptions& options) {
  Console console(options.console);
  kernels::Isa isa = kernels::detect_isa();
  if (!options.isa.empty()) {
    TRY_ASSIGN(isa, kernels::cap_isa(isa, options.isa));
  }
  bench::HostOptions host;
  host.effort = options.quick ? bench::Effort::kQuick : bench::Effort::kFull;
  host.buffer_bytes = options.buffer_bytes;
  if (options.model.empty()) {
    host.disk_directory = options.disk.value_or(default_disk_directory());
  } else {
    TRY_ASSIGN(host.model, resolve_model(options.model));
  }
  TRY_ASSIGN(const numa::Selection use, numa::select_from_machine(options.machine, options.threads));
  TRY_ASSIGN(const std::unique_ptr<numa::Team> team, numa::Team::create(use.topology, use.team));

  bench::HostFigures figures;
  {
    std::string stage;
    std::optional<Progress> progress;
    const bench::HostWatch watch{.cancel = &cancel_flag(), .progress = [&](const char* what, double done) {
                                   if (stage != what) progress.emplace(console, stage = what, ProgressUnit::kShare);
                                   progress->update(static_cast<int64_t>(1000 * done), 1000);
                                 }};
    TRY_ASSIGN(figures, bench::measure_host(*team, use.topology, isa, host, watch));
  }
  TRY(write_stdout(options.json ? to_json_text(bench::host_json(figures), 2) + "\n" : bench::host_text(figures)));
  return kExitOk;
}

}  // namespace cpuinfer::tools
