// This machine, and teams on it, for the tests of what is measured there.
#pragma once

#include <doctest/doctest.h>

#include <memory>
#include <utility>

#include "kernels/isa.h"
#include "numa/team.h"
#include "numa/topology.h"

namespace cpuinfer::bench {

inline numa::Topology machine() {
  auto topology = numa::Topology::detect();
  REQUIRE(topology.has_value());
  return std::move(*topology);
}

inline std::unique_ptr<numa::Team> make_team(const numa::Topology& topology, int threads, int nodes) {
  auto team = numa::Team::create(topology, {.threads = threads, .nodes = nodes});
  REQUIRE(team.has_value());
  return std::move(*team);
}

/// The machine with a team of its own.
struct Setup {
  explicit Setup(int threads, int nodes = 1) : topology(machine()), team(make_team(topology, threads, nodes)) {}
  numa::Topology topology;
  std::unique_ptr<numa::Team> team;
  kernels::Isa isa = kernels::detect_isa();
};

}  // namespace cpuinfer::bench
