#include "tools/profile_report.h"

#include <vector>

#include "base/format.h"
#include "tools/markdown_table.h"
#include "tools/signals.h"

namespace cpuinfer::tools {
namespace {

using model::PhaseCounters;

int64_t time_ns(const PhaseCounters& phase) { return phase.busy_ns + phase.wait_ns; }

PhaseCounters sum_of(const model::StepCounters& phases) {
  PhaseCounters sum;
  for (const PhaseCounters& phase : phases) sum += phase;
  return sum;
}

double share_of_bound(const PhaseCounters& phase, int64_t ns, const bench::MachineLimits& limits) {
  const bench::Bound bound =
      bench::bound_of(static_cast<double>(phase.bytes), static_cast<double>(phase.flops), limits);
  return ns > 0 ? bound.seconds / (static_cast<double>(ns) * 1e-9) : 0;
}

std::string percent(double part, double whole) { return whole > 0 ? format("{:.1f}", 100 * part / whole) : "-"; }

// `ns`: the time of the phase; for the row of all phases that of the steps.
std::vector<std::string> row_of(const char* name, const PhaseCounters& phase, int64_t ns,
                                const run::StepProfile& profile, const bench::MachineLimits& limits) {
  const double steps = static_cast<double>(profile.steps), time = static_cast<double>(ns);
  const auto rate = [&](int64_t amount, const char* none) {  // per ns: of bytes GB/s
    return amount > 0 && ns > 0 ? format("{:.2f}", static_cast<double>(amount) / time) : std::string(none);
  };
  const double bound = share_of_bound(phase, ns, limits);
  return {name,
          format("{:.4f}", time * 1e-6 / steps),
          percent(time, static_cast<double>(profile.ns)),
          phase.bytes > 0 ? format("{:.3f}", static_cast<double>(phase.bytes) * 1e-6 / steps) : "-",
          rate(phase.bytes, "-"),
          rate(phase.flops, "-"),
          bound > 0 ? format("{:.1f}", 100 * bound) : "-",
          percent(static_cast<double>(phase.wait_ns), time)};
}

}  // namespace

std::string phase_table(const run::StepProfile& profile, const bench::MachineLimits& limits) {
  if (profile.steps == 0) return "";
  std::vector<std::vector<std::string>> rows = {
      {"phase", "ms/step", "% of time", "MB/step", "GB/s", "GFLOP/s", "% of bound", "% waiting"}};
  for (int i = 0; i < model::kPhases; ++i) {
    const PhaseCounters& phase = profile.phases[i];
    if (time_ns(phase) > 0 || phase.bytes > 0 || phase.flops > 0)
      rows.push_back(row_of(model::phase_name(static_cast<model::Phase>(i)), phase, time_ns(phase), profile, limits));
  }
  const PhaseCounters all = sum_of(profile.phases);
  rows.push_back(row_of("between phases", {}, profile.ns - time_ns(all), profile, limits));
  rows.push_back(row_of("all", all, profile.ns, profile, limits));
  return markdown_table(rows);
}

Json phases_json(const run::StepProfile& profile, const bench::MachineLimits& limits) {
  Json list(Json::Array{});
  for (int i = 0; i < model::kPhases; ++i) {
    const PhaseCounters& phase = profile.phases[i];
    Json row;
    row.set("phase", model::phase_name(static_cast<model::Phase>(i)));
    row.set("busy_seconds", static_cast<double>(phase.busy_ns) * 1e-9);
    row.set("wait_seconds", static_cast<double>(phase.wait_ns) * 1e-9);
    row.set("bytes", phase.bytes);
    row.set("flops", phase.flops);
    row.set("share_of_bound", share_of_bound(phase, time_ns(phase), limits));
    list.push_back(std::move(row));
  }
  return list;
}

std::string describe_limits(const bench::LimitSampler& sampler, const bench::MachineLimits& limits) {
  return format("reads {:.2f} GB/s ({}), computes {:.1f} GFLOP/s ({}), fp32 FMA {:.1f} GFLOP/s; {} thread{}",
                limits.read_bytes_per_second * 1e-9, sampler.read_name(), limits.flops_per_second * 1e-9,
                sampler.peak_name(), limits.fma_flops_per_second * 1e-9, sampler.workers(),
                sampler.workers() == 1 ? "" : "s together");
}

Result<void> print_profile(run::Engine& engine, Console& console) {
  TRY_ASSIGN(bench::LimitSampler sampler,
             bench::LimitSampler::create(engine, bench::SampleLength::kNormal, &cancel_flag()));
  sampler.sample();
  console.line(format("profile   this machine {}", describe_limits(sampler, sampler.limits())));
  for (const auto& [kind, name] : {std::pair{run::StepKind::kPrefill, "prefill"}, {run::StepKind::kDecode, "decode"}}) {
    const run::StepProfile profile = engine.profile(kind);
    if (profile.steps == 0) continue;
    console.line(format("profile   {}: {} steps, {} tokens, {:.3f} s", name, profile.steps, profile.tokens,
                        static_cast<double>(profile.ns) * 1e-9));
    std::string table = phase_table(profile, sampler.limits());
    table.pop_back();  // line() adds one
    console.line(table);
  }
  return {};
}

}  // namespace cpuinfer::tools
