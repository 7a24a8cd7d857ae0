// cpuinfer bench kernels: every kernel of the lists at the shapes of models.
#include <optional>

#include "bench/kernels.h"
#include "numa/machine_selection.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/progress.h"
#include "tools/signals.h"

namespace cpuinfer::tools {

Result<int> bench_kernels_command(const BenchKernelsOptions& options) {
  Console console(options.console);
  kernels::Isa isa = kernels::detect_isa();
  if (!options.isa.empty()) {
    TRY_ASSIGN(isa, kernels::cap_isa(isa, options.isa));
  }
  TRY_ASSIGN(const numa::Selection use, numa::select_from_machine(options.machine, options.threads));
  TRY_ASSIGN(const std::unique_ptr<numa::Team> team, numa::Team::create(use.topology, use.team));
  bench::KernelFigures figures;
  {
    Progress progress(console, "kernels", ProgressUnit::kShare);
    const bench::Watch watch{.cancel = &cancel_flag(), .progress = [&](double done) {
                               progress.update(static_cast<int64_t>(1000 * done), 1000);
                             }};
    const bench::KernelBenchOptions bench{
        .shapes = options.shapes, .rows = options.rows, .kernel = options.kernel, .quick = options.quick};
    TRY_ASSIGN(figures, bench::measure_kernels(*team, use.topology, isa, bench, watch));
  }
  TRY(write_stdout(options.json ? to_json_text(bench::kernels_json(figures), 2) + "\n" : bench::kernels_text(figures)));
  return kExitOk;
}

}  // namespace cpuinfer::tools
