// cpuinfer bench host: what bounds every model on this machine.
#include "base/format.h"
#include "base/json.h"
#include "bench/barriers.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/progress.h"

namespace cpuinfer::tools {

Result<int> bench_host_command(const BenchHostOptions& options) {
  Console console(options.console);
  TRY_ASSIGN(const numa::Topology topology, numa::Topology::detect());
  TRY_ASSIGN(const std::unique_ptr<numa::Team> team, numa::Team::create(topology, options.threads, options.nodes));
  const std::vector<bench::BarrierFigure> barriers = bench::measure_barriers(*team, options.quick ? 0.02 : 0.2);
  if (options.json) {
    Json list(Json::Array{});
    for (const bench::BarrierFigure& figure : barriers) {
      Json row;
      row.set("name", figure.name);
      row.set("ns", figure.nanoseconds);
      list.push_back(std::move(row));
    }
    Json json;
    json.set("barriers", std::move(list));
    TRY(write_stdout(to_json_text(json, 2) + "\n"));
    return kExitOk;
  }
  std::string text;
  for (const bench::BarrierFigure& figure : barriers)
    text += format("{:<14} {:>10.0f} ns\n", figure.name, figure.nanoseconds);
  TRY(write_stdout(text));
  return kExitOk;
}

}  // namespace cpuinfer::tools
