// cpuinfer plan: memory by purpose and whether it fits, before any weight is read.
#include "base/format.h"
#include "base/json.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/progress.h"
#include "tools/session.h"

namespace cpuinfer::tools {

Result<int> plan_command(const PlanOptions& options) {
  Console console(options.console);
  TRY_ASSIGN(const std::unique_ptr<run::Engine> engine, prepare_engine(options.model));
  const load::MemoryPlan& plan = engine->plan();
  if (options.json) {
    Json json = plan.json();
    json.set("decode_weight_bytes", engine->decode_weight_bytes());
    TRY(write_stdout(to_json_text(json, 2) + "\n"));
    return plan.fits() ? kExitOk : kExitConfig;
  }
  std::string text;
  for (const std::string& line : engine->describe()) text += line + "\n";
  TRY(write_stdout(text + "\n" + plan.table() + "\n"));
  if (!plan.fits() && plan.largest_context > 0) TRY(write_stdout(format("--ctx {} would fit\n", plan.largest_context)));
  return plan.fits() ? kExitOk : kExitConfig;
}

}  // namespace cpuinfer::tools
