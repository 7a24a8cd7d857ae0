// cpuinfer bench store: what a KV store gains, beside the disk.
#include <algorithm>

#include "base/format.h"
#include "bench/store.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/progress.h"
#include "tools/session.h"
#include "tools/signals.h"

namespace cpuinfer::tools {

Result<int> bench_store_command(const BenchStoreOptions& options) {
  Console console(options.console);
  run::EngineOptions engine_options = options.engine;
  if (options.model.empty()) {
    TRY_ASSIGN(engine_options.synthetic, synthetic_model(options.synthetic, options.layers, 0));
  } else {
    TRY_ASSIGN(engine_options.model, resolve_model(options.model));
  }
  engine_options.context_tokens = *std::max_element(options.prefixes.begin(), options.prefixes.end()) + 1;
  TRY_ASSIGN(const std::unique_ptr<run::Engine> engine, run::Engine::prepare(engine_options));
  TRY(load_engine(*engine, {}, console));
  if (const auto stored = engine->kv_store()->pages().statistics().pages; stored > 0) {
    return fail(ErrorCode::kUsage, format("{}: has {} pages; prefixes are to be computed first, so give an empty "
                                          "directory",
                                          engine->kv_store()->pages().directory().string(), stored));
  }
  bench::StoreFigures figures;
  {
    Progress progress(console, "prefill", ProgressUnit::kShare);
    const bench::Watch watch{.cancel = &cancel_flag(), .progress = [&](double done) {
                               progress.update(static_cast<int64_t>(done * 1000), 1000);
                             }};
    TRY_ASSIGN(figures, bench::measure_store(
                            *engine, {.prefixes = options.prefixes, .disk_seconds = options.quick ? 0.2 : 2}, watch));
  }
  TRY(write_stdout(options.json ? to_json_text(bench::store_json(figures), 2) + "\n" : bench::store_text(figures)));
  return std::all_of(figures.cases.begin(), figures.cases.end(), [](const auto& c) { return c.same_bits; })
             ? kExitOk
             : kExitInternal;
}

}  // namespace cpuinfer::tools
