// A plan as a picture: one bar per node.
#pragma once

#include <string>
#include <string_view>

#include "engine/load/memory_plan.h"

namespace cpuinfer::tools {

/// SVG: a bar per node with a segment per purpose, the node's free memory as an outline, what exceeds it hatched in
/// red, and a legend with bytes. `title` is one line. Pure.
std::string plan_svg(const load::MemoryPlan& plan, std::string_view title);

}  // namespace cpuinfer::tools
