#include "bench/peaks.h"

#include <algorithm>
#include <atomic>

#include "bench/timing.h"

namespace cpuinfer::bench {
namespace {

// Between two looks at the clock: some 10 us.
constexpr int64_t kIterations = 2000;
constexpr int kSamples = 5;

}  // namespace

double sample_peak(numa::Team& team, const kernels::PeakProbe& probe, bool all_workers, double seconds) {
  struct alignas(64) Slot {
    double rate = 0;
    float sum = 0;  // the probe's result, so that it is computed
  };
  std::vector<Slot> slots(static_cast<size_t>(team.workers()));
  team.run([&](numa::Worker& worker) {
    Slot& slot = slots[static_cast<size_t>(worker.rank)];
    worker.barrier();
    if (!all_workers && worker.rank > 0) return;
    int64_t iterations = 0;
    double elapsed = 0;
    float sum = 0;
    const Clock::time_point start = Clock::now();
    do {
      sum += probe.run(kIterations);
      iterations += kIterations;
      elapsed = seconds_since(start);
    } while (elapsed < seconds);
    slot = {static_cast<double>(iterations * probe.flops_per_iteration) / elapsed, sum};
  });
  double rate = 0;
  for (const Slot& slot : slots) rate += slot.rate;
  return rate;
}

Result<std::vector<PeakFigure>> measure_peaks(numa::Team& team, kernels::Isa isa, double seconds, const Watch& watch) {
  std::vector<PeakFigure> figures;
  for (const kernels::PeakProbe& probe : kernels::peak_probes())
    if (kernels::covers(isa, probe.needs)) figures.push_back({.probe = &probe});
  for (size_t i = 0; i < figures.size(); ++i) {
    PeakFigure& figure = figures[i];
    TRY(watch.check(static_cast<double>(i) / static_cast<double>(figures.size())));
    for (int n = 0; n < kSamples; ++n) {
      figure.all = std::max(figure.all, sample_peak(team, *figure.probe, true, seconds / kSamples));
      figure.one = std::max(figure.one, sample_peak(team, *figure.probe, false, seconds / kSamples));
    }
  }
  return figures;
}

}  // namespace cpuinfer::bench
