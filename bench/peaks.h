// Arithmetic peaks: what the cores compute on registers alone.
#pragma once

#include <vector>

#include "bench/read.h"
#include "kernels/probes.h"
#include "numa/team.h"

namespace cpuinfer::bench {

/// The highest of some samples: a peak is what the machine can do when nothing disturbs it.
struct PeakFigure {
  const kernels::PeakProbe* probe = nullptr;
  double all = 0;  ///< flops per second of all workers at once
  double one = 0;  ///< of one worker, the others waiting
};

/// One sample: flops per second of all workers at once, or of worker 0 alone.
double sample_peak(numa::Team& team, const kernels::PeakProbe& probe, bool all_workers, double seconds);

/// Every probe within `isa`, in the order of the list; about `seconds` for each of the two figures of each.
/// Errors: kInterrupted.
Result<std::vector<PeakFigure>> measure_peaks(numa::Team& team, kernels::Isa isa, double seconds,
                                              const Watch& watch = {});

}  // namespace cpuinfer::bench
