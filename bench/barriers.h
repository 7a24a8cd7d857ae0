// What it costs to begin a parallel step and to end a phase.
#pragma once

#include <vector>

#include "numa/team.h"

namespace cpuinfer::bench {

/// One kind of synchronisation of all workers.
struct BarrierFigure {
  const char* name;        ///< "empty step", "barrier", "barrier in node"
  double nanoseconds = 0;  ///< of one, as worker 0 sees it: median of the samples
};

/// Times each kind again and again for `seconds`, one kind after the other. A barrier is timed in a step of its own,
/// with nothing between two of them. Call from the thread that owns the team.
std::vector<BarrierFigure> measure_barriers(numa::Team& team, double seconds);

}  // namespace cpuinfer::bench
