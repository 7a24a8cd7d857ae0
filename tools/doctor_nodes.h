// The checks of cpuinfer doctor that look at memory nodes.
#pragma once

#include <vector>

#include "tools/doctor.h"

namespace cpuinfer::tools {

/// nodes (who has CPUs, memory, both), cpuset (memory that it forbids), balancing, reclaim, fragments (free memory in
/// pieces too small for huge pages).
std::vector<Check> check_memory_nodes(const Machine& machine);

}  // namespace cpuinfer::tools
