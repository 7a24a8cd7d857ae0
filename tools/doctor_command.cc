// cpuinfer doctor: what this machine offers and what hinders it.
#include "base/json.h"
#include "tools/commands.h"
#include "tools/doctor.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/progress.h"
#include "tools/signals.h"

namespace cpuinfer::tools {

Result<int> doctor_command(const DoctorOptions& options) {
  Console console(options.console);
  TRY_ASSIGN(const Machine machine, inspect_machine(options.isa, {.cancel = &cancel_flag(), .progress = {}}));
  TRY_ASSIGN(const std::vector<Check> checks, diagnose(machine, options.isa));
  TRY(write_stdout(options.json ? to_json_text(report_json(checks), 2) + "\n" : report_text(checks)));
  return is_usable(checks) ? kExitOk : kExitRuntime;
}

}  // namespace cpuinfer::tools
