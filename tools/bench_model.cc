// cpuinfer bench model: tokens per second of decode and prefill, beside what bounds them.
#include <algorithm>
#include <cmath>

#include "base/format.h"
#include "base/json.h"
#include "bench/model.h"
#include "bench/timing.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/markdown_table.h"
#include "tools/output.h"
#include "tools/profile_report.h"
#include "tools/progress.h"
#include "tools/session.h"
#include "tools/signals.h"

namespace cpuinfer::tools {
namespace {

using bench::CaseResult;
using bench::ModelCase;

/// A case, and its result if memory has room for it.
struct Line {
  const bench::PlannedCase* planned;
  std::optional<CaseResult> result;
};

Result<bench::ModelBenchOptions> bench_options(const BenchModelOptions& options) {
  bench::ModelBenchOptions bench{options.engine, options.cases, options.repeats, options.profile};
  if (!options.synthetic.empty()) {
    TRY_ASSIGN(bench.engine.synthetic, synthetic_model(options.synthetic, options.layers, options.seed));
  } else {
    TRY_ASSIGN(bench.engine.model, resolve_model(options.model));
  }
  return bench;
}

std::string model_label(const BenchModelOptions& options) {
  if (!options.synthetic.empty()) return options.synthetic;
  const std::filesystem::path path(options.model);
  return (path.has_filename() ? path.filename() : path.parent_path().filename()).string();
}

std::vector<std::string> row_of(const Line& line, const std::string& model, int layers) {
  const ModelCase& test = line.planned->test;
  std::vector<std::string> row = {model, format("{}", layers), test.experts > 0 ? format("{}", test.experts) : "-",
                                  test.name()};
  if (!line.result) {
    row.push_back("does not fit");
    return row;
  }
  const CaseResult& result = *line.result;
  row.push_back(format("{:.2f} ± {:.2f}", result.tokens_per_second, result.spread));
  row.push_back(format("{:.4g}", result.bytes_per_token * 1e-9));
  row.push_back(format("{:.4g}", result.flops_per_token * 1e-9));
  row.push_back(result.bound.seconds > 0 ? format("{} {:.2f}", result.bound.arithmetic ? "arithmetic" : "bandwidth",
                                                  1 / result.bound.seconds)
                                         : "-");
  row.push_back(format("{:.1f}", 100 * result.share()));
  row.push_back(format("{:.1f}", 100 * result.flops_per_second() / result.limits.fma_flops_per_second));
  return row;
}

// The middle case's limits, and how far apart those of the cases are: on a shared machine they change with time.
std::string limits_text(const std::vector<Line>& lines, const bench::LimitSampler& sampler) {
  std::vector<double> reads, peaks, fmas;
  for (const Line& line : lines) {
    if (!line.result) continue;
    reads.push_back(line.result->limits.read_bytes_per_second);
    peaks.push_back(line.result->limits.flops_per_second);
    fmas.push_back(line.result->limits.fma_flops_per_second);
  }
  const auto [slowest, fastest] = std::ranges::minmax(reads);
  const auto [least, most] = std::ranges::minmax(peaks);
  const bench::MachineLimits middle = {bench::median(reads), bench::median(peaks), bench::median(fmas)};
  return format("{}; from case to case {:.2f} to {:.2f} GB/s, {:.1f} to {:.1f} GFLOP/s",
                describe_limits(sampler, middle), slowest * 1e-9, fastest * 1e-9, least * 1e-9, most * 1e-9);
}

std::string report_text(const std::vector<Line>& lines, const std::string& model, int layers,
                        const bench::LimitSampler& sampler, bool profile) {
  std::vector<std::vector<std::string>> rows = {{"model", "layers", "experts", "test", "tokens/s", "GB/token",
                                                 "GFLOP/token", "bound, tokens/s", "% of bound", "% of FMA peak"}};
  for (const Line& line : lines) rows.push_back(row_of(line, model, layers));
  std::string text = markdown_table(rows, 4);
  for (const Line& line : lines)
    if (line.planned->refusal)
      text += format("\n{} does not fit: {}\n", line.planned->test.name(), *line.planned->refusal);
  text += format("\nThis machine, measured between the repeats: {}.\n", limits_text(lines, sampler));
  text +=
      "tokens/s: of all sequences together, median of the repeats ± half of their range. % of bound: against the\n"
      "larger of bytes / bandwidth and flops / peak, both measured between the repeats of the same case.\n";
  if (!profile) return text;
  for (const Line& line : lines) {
    if (!line.result) continue;
    text += format("\n{}, {} experts:\n\n{}", line.planned->test.name(), line.planned->test.experts,
                   phase_table(line.result->profile, line.result->limits));
    const bench::CountingCost& cost = *line.result->counting;
    const auto percent = [](double ratio) { return format("{:.3f} %", 100 * (ratio - 1)); };
    text +=
        format("\nCounting this takes {} of a repeat: median of {} pairs with and without, the middle half {} to {}.\n",
               percent(cost.median), line.result->seconds.size(), percent(cost.low), percent(cost.high));
  }
  return text;
}

Json case_json(const Line& line) {
  const ModelCase& test = line.planned->test;
  Json json;
  json.set("test", test.name());
  json.set("experts", test.experts);
  json.set("depth", test.depth);
  json.set("batch", test.batch);
  json.set("prompt_tokens", test.prompt);
  json.set("decoded_tokens", test.decoded);
  json.set("fits", line.result.has_value());
  if (!line.result) {
    json.set("refusal", *line.planned->refusal);
    return json;
  }
  const CaseResult& result = *line.result;
  Json seconds(Json::Array{});
  for (const double value : result.seconds) seconds.push_back(value);
  json.set("seconds", std::move(seconds));
  json.set("tokens_per_second", result.tokens_per_second);
  json.set("spread_tokens_per_second", result.spread);
  json.set("bytes_per_token", result.bytes_per_token);
  json.set("flops_per_token", result.flops_per_token);
  json.set("read_bytes_per_second", result.limits.read_bytes_per_second);
  json.set("peak_flops_per_second", result.limits.flops_per_second);
  json.set("fma_flops_per_second", result.limits.fma_flops_per_second);
  json.set("bound", result.bound.arithmetic ? "arithmetic" : "bandwidth");
  json.set("bound_tokens_per_second", result.bound.seconds > 0 ? Json(1 / result.bound.seconds) : Json());
  json.set("share_of_bound", result.share());
  json.set("share_of_fma_peak", result.flops_per_second() / result.limits.fma_flops_per_second);
  if (result.counting) {
    Json counting;
    counting.set("median", result.counting->median);
    counting.set("low", result.counting->low);
    counting.set("high", result.counting->high);
    json.set("counting_ratio", std::move(counting));
  }
  json.set("steps", result.profile.steps);
  json.set("phases", phases_json(result.profile, result.limits));
  return json;
}

Json report_json(const std::vector<Line>& lines, const std::string& model, bench::ModelBench& bench,
                 const bench::LimitSampler& sampler) {
  const run::Engine& engine = bench.engine();
  Json json;
  json.set("model", model);
  json.set("layers", engine.config().layers);
  json.set("threads", engine.workers());
  json.set("nodes", engine.nodes());
  json.set("numerics", kernels::profile_name(engine.kernels().profile));
  json.set("read_kernel", sampler.read_name());
  json.set("peak_kernel", sampler.peak_name());
  Json cases(Json::Array{});
  for (const Line& line : lines) cases.push_back(case_json(line));
  json.set("cases", std::move(cases));
  return json;
}

}  // namespace

Result<int> bench_model_command(const BenchModelOptions& options) {
  Console console(options.console);
  TRY_ASSIGN(const bench::ModelBenchOptions wanted, bench_options(options));
  TRY_ASSIGN(bench::ModelBench bench, bench::ModelBench::prepare(wanted));
  TRY(load_engine(bench.engine(), {}, console));
  TRY(check_cancel());
  TRY_ASSIGN(
      bench::LimitSampler sampler,
      bench::LimitSampler::create(
          bench.engine(), options.quick ? bench::SampleLength::kQuick : bench::SampleLength::kNormal, &cancel_flag()));

  double total = 0, done = 0;  // of the cost of all cases
  for (const bench::PlannedCase& planned : bench.cases())
    if (!planned.refusal) total += bench.estimated_cost(planned.test);
  std::vector<Line> lines;
  Progress progress(console, "measuring", ProgressUnit::kShare);
  for (const bench::PlannedCase& planned : bench.cases()) {
    Line& line = lines.emplace_back(Line{&planned, std::nullopt});
    if (planned.refusal) continue;
    const double cost = bench.estimated_cost(planned.test);
    const auto show = [&](int repeats, int all) {
      progress.update(std::llround(1e6 * (done + cost * repeats / all) / total), 1000000);
    };
    TRY_ASSIGN(line.result, bench.run(planned.test, sampler, &cancel_flag(), show));
    done += cost;
  }

  const std::string model = model_label(options);
  if (options.json) {
    TRY(write_stdout(to_json_text(report_json(lines, model, bench, sampler), 2) + "\n"));
  } else {
    TRY(write_stdout(report_text(lines, model, bench.engine().config().layers, sampler, options.profile)));
  }
  return kExitOk;
}

}  // namespace cpuinfer::tools
