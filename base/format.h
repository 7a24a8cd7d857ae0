// String formatting: fmt until the toolchain has <format>.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace cpuinfer {
using fmt::format;
}  // namespace cpuinfer
