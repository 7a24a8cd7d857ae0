#include "bench/kernels.h"

#include <unistd.h>

#include <algorithm>
#include <string_view>

#include "base/format.h"
#include "base/types.h"
#include "numa/memory_limit.h"

namespace cpuinfer::bench {
namespace {

using kernels::ElementwiseKernels;
using kernels::GemmKernel;
using kernels::Isa;

std::string row_name(const GemmKernel& row) {
  return row.profile == kernels::Profile::kOneDnn ? row.name
                                                  : format("{} ({})", row.name, kernels::profile_name(row.profile));
}

/// What can run, and what was asked for.
struct Chosen {
  std::vector<const GemmKernel*> gemm;
  std::vector<const ElementwiseKernels*> elementwise;
};

Result<Chosen> choose(Isa isa, std::string_view wanted, std::vector<std::string>& left_out) {
  Chosen chosen;
  std::vector<std::string> names;
  bool known = wanted.empty();
  std::string refusal;
  const auto take = [&](const auto& row, const std::string& full_name) {
    if (std::find(names.begin(), names.end(), row.name) == names.end()) names.emplace_back(row.name);
    const bool asked = wanted.empty() || wanted == row.name;
    known |= asked;
    const Isa missing = kernels::without(row.needs, isa);
    if (missing == Isa::kNone) return asked;
    if (asked) {
      refusal =
          format("{}: needs {}, this run may use {}", full_name, kernels::isa_names(missing), kernels::isa_names(isa));
      left_out.push_back(refusal);
    }
    return false;
  };
  const GemmKernel* baseline = nullptr;
  for (const GemmKernel& row : kernels::gemm_kernels()) {
    const bool taken = take(row, row_name(row));
    if (row.profile == kernels::Profile::kOneDnn && kernels::covers(isa, row.needs))
      baseline = &row;
    else if (taken)
      chosen.gemm.push_back(&row);
  }
  for (const ElementwiseKernels& row : kernels::elementwise_kernels())
    if (take(row, format("the rest by {}", row.name))) chosen.elementwise.push_back(&row);
  if (!known)
    return fail(ErrorCode::kUsage, format("unknown kernel \"{}\": expected one of {}", wanted, fmt::join(names, ", ")));
  if (chosen.gemm.empty() && chosen.elementwise.empty() && (baseline == nullptr || wanted != baseline->name))
    return fail(ErrorCode::kUnsupported, refusal);
  // The last of each compares: oneDNN, and the reference.
  if (baseline != nullptr && (!chosen.gemm.empty() || wanted == baseline->name)) chosen.gemm.push_back(baseline);
  const ElementwiseKernels* const reference = &kernels::elementwise_kernels().back();
  if (!chosen.elementwise.empty() && chosen.elementwise.back() != reference) chosen.elementwise.push_back(reference);
  return chosen;
}

}  // namespace

int64_t weight_bytes_for(const numa::Team& team, bool quick) {
  constexpr int64_t kUnitBytes = 64_KiB;  // the least that a worker reads
  const int64_t least = team.workers() * kUnitBytes;
  if (quick) return std::max(16_MiB, least);
  const int64_t cache = std::max<int64_t>(sysconf(_SC_LEVEL3_CACHE_SIZE), 0);
  const int64_t room = numa::available_memory().bytes / 4 / team.nodes();
  return round_up(std::max({std::min(std::max(512_MiB, 4 * cache), room), 128_MiB, least}), kUnitBytes);
}

const PeakFigure& KernelFigures::highest_peak() const {
  return *std::max_element(peaks.begin(), peaks.end(),
                           [](const PeakFigure& a, const PeakFigure& b) { return a.all < b.all; });
}

Result<KernelFigures> measure_kernels(numa::Team& team, const numa::Topology& topology, Isa isa,
                                      const KernelBenchOptions& options, const Watch& watch) {
  if (!kernels::covers(isa, Isa::kAvx2))
    return fail(ErrorCode::kUnsupported, format("the measurements need avx2, but this run may use {}: ask for a higher "
                                                "level or none",
                                                kernels::isa_names(isa)));
  const auto part = [&](double from, double to) {
    return Watch{.cancel = watch.cancel, .progress = [&watch, from, to](double done) {
                   if (watch.progress) watch.progress(from + (to - from) * done);
                 }};
  };
  KernelFigures figures;
  figures.cpu = topology.cpu_model();
  figures.workers = team.workers();
  figures.isa = isa;
  TRY_ASSIGN(figures.shapes, kernel_shapes(options.shapes));
  TRY_ASSIGN(const Chosen chosen, choose(isa, options.kernel, figures.left_out));

  GemmBenchOptions gemm;
  gemm.rows = options.rows;
  for (int m = 1; m <= 4096 && options.rows.empty(); m *= 2)
    if (!options.quick || m == 1 || m == 4 || m == 16) gemm.rows.push_back(m);
  if (options.quick) {
    gemm.seconds = 0.002;
    std::erase_if(figures.shapes, [](const KernelShape& shape) { return int64_t{shape.n} * shape.k > 2048 * 1024; });
  }
  gemm.shapes = figures.shapes;
  gemm.weight_bytes = figures.weight_bytes = weight_bytes_for(team, options.quick);
  TRY_ASSIGN(GemmBench bench, GemmBench::create(team, topology, std::move(gemm)));
  SweepEffort effort = {
      .coarse_seconds = 0.004, .coarse_samples = 1, .fine_seconds = 0.02, .fine_samples = 5, .quick = true};
  if (options.quick) effort = quick_effort();
  TRY_ASSIGN(const ReadSweep sweep, sweep_read(team, {&bench.memory(), 1}, isa, effort, part(0, 0.02)));
  figures.read = sweep.winner();
  TRY_ASSIGN(figures.peaks, measure_peaks(team, isa, options.quick ? 0.01 : 0.05, part(0.02, 0.03)));
  if (!chosen.elementwise.empty()) {
    TRY_ASSIGN(figures.elementwise,
               measure_elementwise(team, chosen.elementwise, options.quick ? 0.0005 : 0.01, part(0.03, 0.05)));
  }
  if (!chosen.gemm.empty()) {
    const GemmLimits limits{
        .read = sweep.winner().config, .peak = figures.highest_peak().probe, .seconds = options.quick ? 0.001 : 0.008};
    TRY_ASSIGN(figures.gemm, bench.run(chosen.gemm, limits, part(0.05, 1)));
    const auto slow = [](const GemmKernel* row) { return is_slow_row(*row); };
    if (std::any_of(chosen.gemm.begin(), chosen.gemm.end(), slow))
      figures.left_out.push_back(
          format("reference and emulated rows: run for M up to {}, on {} outputs of a matrix at most", kSlowMostRows,
                 kSlowOutputs));
  }
  return figures;
}

std::string kernels_text(const KernelFigures& figures) {
  const PeakFigure& peak = figures.highest_peak();
  std::string text = format(
      "{}: {} thread{}, {}\n"
      "read bandwidth {:.2f} GB/s; highest peak {:.1f} GFLOP/s ({})\n",
      figures.cpu, figures.workers, figures.workers == 1 ? "" : "s", kernels::isa_names(figures.isa),
      figures.read.rate.all / 1e9, peak.all / 1e9, peak.probe->name);
  for (const std::string& line : figures.left_out) text += line + "\n";
  if (!figures.gemm.empty())
    text += format(
        "Products rotate over {} of weights per node. %: of the read bandwidth and of the highest peak, sampled\nin "
        "the same rounds.\n"
        "Sampled outputs of every kernel were compared: bit by bit with its profile's reference, oneDNN within\n"
        "rounding.\n",
        format_bytes(figures.weight_bytes));
  size_t shape = SIZE_MAX;
  for (const GemmCell& cell : figures.gemm) {
    if (cell.shape != shape) {
      shape = cell.shape;
      const KernelShape& s = figures.shapes[shape];
      text += format("\n{}: {} outputs of {} terms\n{:>5}  {:<18} {:>11} {:>9} {:>6} {:>11} {:>6} {:>9}\n", s.name, s.n,
                     s.k, "M", "kernel", "us", "GB/s", "%", "GFLOP/s", "%", "x oneDNN");
    }
    text +=
        format("{:>5}  {:<18} {:>11.1f} {:>9.2f} {:>6.1f} {:>11.1f} {:>6.1f} {:>9}\n", cell.m, row_name(*cell.kernel),
               cell.seconds * 1e6, cell.bytes_per_second() / 1e9, 100 * cell.bytes_per_second() / cell.read_rate,
               cell.flops_per_second() / 1e9, 100 * cell.flops_per_second() / cell.peak_rate,
               cell.onednn > 0 ? format("{:.2f}", cell.onednn) : "-");
  }
  if (!figures.elementwise.empty())
    text += format("\nOn one thread, in the caches, the same bits\n{:<18} {:>6}  {:<14} {:>10} {:>12}\n", "operation",
                   "n", "kernels", "ns", "x reference");
  for (const ElementwiseCell& cell : figures.elementwise)
    text += format("{:<18} {:>6}  {:<14} {:>10.1f} {:>12.1f}\n", cell.operation, cell.n, cell.kernels->name,
                   cell.nanoseconds, cell.speedup);
  return text;
}

Json kernels_json(const KernelFigures& figures) {
  Json json;
  json.set("cpu", figures.cpu);
  json.set("threads", figures.workers);
  json.set("isa", kernels::isa_names(figures.isa));
  json.set("weight_bytes", figures.weight_bytes);
  json.set("read_gb_s", figures.read.rate.all / 1e9);
  Json peaks(Json::Array{});
  for (const PeakFigure& peak : figures.peaks) {
    Json row;
    row.set("name", peak.probe->name);
    row.set("gflop_s", peak.all / 1e9);
    peaks.push_back(std::move(row));
  }
  json.set("peaks", std::move(peaks));
  Json gemm(Json::Array{});
  for (const GemmCell& cell : figures.gemm) {
    Json row;
    row.set("shape", figures.shapes[cell.shape].name);
    row.set("n", cell.n);
    row.set("k", figures.shapes[cell.shape].k);
    row.set("m", cell.m);
    row.set("kernel", cell.kernel->name);
    row.set("profile", kernels::profile_name(cell.kernel->profile));
    row.set("us", cell.seconds * 1e6);
    row.set("gb_s", cell.bytes_per_second() / 1e9);
    row.set("read_gb_s", cell.read_rate / 1e9);
    row.set("read_share", cell.bytes_per_second() / cell.read_rate);
    row.set("gflop_s", cell.flops_per_second() / 1e9);
    row.set("peak_gflop_s", cell.peak_rate / 1e9);
    row.set("peak_share", cell.flops_per_second() / cell.peak_rate);
    row.set("times_onednn", cell.onednn > 0 ? Json(cell.onednn) : Json());
    row.set("checked", cell.checked);
    gemm.push_back(std::move(row));
  }
  json.set("gemm", std::move(gemm));
  Json elementwise(Json::Array{});
  for (const ElementwiseCell& cell : figures.elementwise) {
    Json row;
    row.set("operation", cell.operation);
    row.set("n", cell.n);
    row.set("kernels", cell.kernels->name);
    row.set("ns", cell.nanoseconds);
    row.set("speedup", cell.speedup);
    elementwise.push_back(std::move(row));
  }
  json.set("elementwise", std::move(elementwise));
  Json left_out(Json::Array{});
  for (const std::string& line : figures.left_out) left_out.push_back(line);
  json.set("left_out", std::move(left_out));
  return json;
}

}  // namespace cpuinfer::bench
