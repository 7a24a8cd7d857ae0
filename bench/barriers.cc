#include "bench/barriers.h"

#include "bench/timing.h"

namespace cpuinfer::bench {
namespace {

// Each function does `count` synchronisations of one kind.
void empty_steps(numa::Team& team, int count) {
  for (int i = 0; i < count; ++i) team.run([](numa::Worker&) {});
}

void team_barriers(numa::Team& team, int count) {
  team.run([count](numa::Worker& worker) {
    for (int i = 0; i < count; ++i) worker.barrier();
  });
}

void node_barriers(numa::Team& team, int count) {
  team.run([count](numa::Worker& worker) {
    for (int i = 0; i < count; ++i) worker.barrier_in_node();
  });
}

struct Kind {
  const char* name;
  void (*run)(numa::Team& team, int count);
};

constexpr Kind kKinds[] = {
    {"empty step", empty_steps},
    {"barrier", team_barriers},
    {"barrier in node", node_barriers},
};

}  // namespace

std::vector<BarrierFigure> measure_barriers(numa::Team& team, double seconds) {
  // Many per sample: a clock is read to some 30 ns, and the step around the barriers is to vanish beside them.
  constexpr int kPerSample = 256;
  std::vector<BarrierFigure> figures;
  for (const Kind& kind : kKinds) {
    const double one =
        median_seconds(seconds, [&] { return seconds_of([&] { kind.run(team, kPerSample); }) / kPerSample; });
    figures.push_back({kind.name, one * 1e9});
  }
  return figures;
}

}  // namespace cpuinfer::bench
