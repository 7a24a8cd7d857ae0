// Topologies for tests: this machine's, and some that are not there.
#pragma once

#include <doctest/doctest.h>

#include <utility>

#include "numa/topology.h"

namespace cpuinfer::numa {

inline Topology machine() {
  auto topology = Topology::detect();
  REQUIRE(topology.has_value());
  return std::move(topology).value();
}

/// In hwloc's notation.
inline Topology synthetic(const char* text) {
  auto topology = Topology::synthetic(text);
  REQUIRE(topology.has_value());
  return std::move(topology).value();
}

}  // namespace cpuinfer::numa
