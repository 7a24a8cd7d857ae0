// What the measurements of the machine promise, on teams and memories small enough for any machine. Not speed.
#include <doctest/doctest.h>

#include <atomic>
#include <cmath>

#include "base/types.h"
#include "bench/barriers.h"
#include "bench/peaks.h"
#include "bench/read.h"
#include "bench/timing.h"
#include "tests/bench/machine.h"

using namespace cpuinfer;
using namespace cpuinfer::bench;

namespace {

bool positive(double value) { return std::isfinite(value) && value > 0; }

}  // namespace

TEST_CASE("medians") {
  CHECK(median({3}) == 3);
  CHECK(median({4, 1}) == 2.5);
  CHECK(median({5, 1, 3}) == 3);
  CHECK(median({9, 1, 3, 4}) == 3.5);
}

TEST_CASE("a sweep names its best entry, and every entry has its figures") {
  for (const int nodes : {1, 2}) {
    Setup s(2, nodes);
    std::vector<ReadBuffers> buffers;
    for (const numa::Pages pages : {numa::Pages::kSmall, numa::Pages::kHuge}) {
      auto made = make_read_buffers(*s.team, s.topology, 4_MiB, pages);
      REQUIRE(made.has_value());
      buffers.push_back(std::move(*made));
    }
    const ReadMemory memories[] = {buffers[0].memory, buffers[1].memory};
    double last = 0;
    const Watch watch{.cancel = nullptr, .progress = [&](double done) {
                        CHECK(done >= last);
                        CHECK(done <= 1);
                        last = done;
                      }};
    const auto sweep = sweep_read(*s.team, memories, s.isa, quick_effort(), watch);
    REQUIRE(sweep.has_value());
    CHECK(last > 0);
    bool seen_memory[2] = {};
    for (const ReadEntry& entry : sweep->entries) {
      CHECK(positive(entry.rate.all));
      CHECK(entry.rate.all <= sweep->winner().rate.all);
      CHECK(entry.rate.nodes.size() == static_cast<size_t>(nodes));
      for (const double node : entry.rate.nodes) CHECK(positive(node));
      CHECK(entry.samples >= 1);
      CHECK(ReadSampler::min_bytes(entry.config.pattern) <= 4_MiB * nodes / 2);
      seen_memory[entry.memory] = true;
    }
    CHECK(seen_memory[0]);
    CHECK(seen_memory[1]);
    CHECK(sweep->winner().samples >= quick_effort().fine_samples);
  }
}

TEST_CASE("a sampler walks through all pieces, small ones left out") {
  Setup s(1, 1);
  auto made = make_read_buffers(*s.team, s.topology, 4_MiB, numa::Pages::kHuge);
  REQUIRE(made.has_value());
  const std::byte* data = made->memory.workers[0][0].data;
  // The second piece is too small for the pattern, the third is none at all.
  const ReadMemory memory{"weights",
                          {{{data, 1_MiB}, {data + 1_MiB, 4_KiB}, {nullptr, 0}, {data + 2_MiB, 1_MiB + 64}}}};
  ReadSampler sampler(*s.team, memory);
  for (const kernels::ReadProbe& probe : kernels::read_probes()) {
    if (!kernels::covers(s.isa, probe.needs)) continue;
    const ReadRate rate = sampler.sample({&probe, {4, 64_KiB, 2_KiB}}, 0.005);
    CHECK(positive(rate.all));
    CHECK(rate.nodes == std::vector<double>{rate.all});
  }
}

TEST_CASE("peaks of every probe that the CPU has") {
  Setup s(2, 1);
  const auto figures = measure_peaks(*s.team, s.isa, 0.01);
  REQUIRE(figures.has_value());
  size_t expected = 0;
  for (const kernels::PeakProbe& probe : kernels::peak_probes()) expected += kernels::covers(s.isa, probe.needs);
  CHECK(figures->size() == expected);
  for (const PeakFigure& figure : *figures) {
    CAPTURE(figure.probe->name);
    CHECK(positive(figure.all));
    CHECK(positive(figure.one));
  }
  const auto capped = measure_peaks(*s.team, kernels::Isa::kAvx2, 0.001);
  REQUIRE(capped.has_value());
  REQUIRE(capped->size() == 1);
  CHECK(capped->front().probe->name == std::string("fp32 FMA (avx2)"));
}

TEST_CASE("each kind of barrier has its figure") {
  Setup s(2, 1);
  const std::vector<BarrierFigure> figures = measure_barriers(*s.team, 0.01);
  REQUIRE(figures.size() >= 2);
  CHECK(figures[0].name == std::string("empty step"));
  CHECK(figures[1].name == std::string("barrier"));
  for (const BarrierFigure& figure : figures) CHECK(positive(figure.nanoseconds));
}

TEST_CASE("a measurement stops when asked to") {
  Setup s(1, 1);
  auto made = make_read_buffers(*s.team, s.topology, 1_MiB, numa::Pages::kHuge);
  REQUIRE(made.has_value());
  std::atomic<bool> cancel = false;
  const Watch watch{.cancel = &cancel, .progress = [&](double done) { cancel = done > 0.1; }};
  const auto sweep = sweep_read(*s.team, {&made->memory, 1}, s.isa, quick_effort(), watch);
  REQUIRE_FALSE(sweep.has_value());
  CHECK(sweep.error().code == ErrorCode::kInterrupted);
  CHECK(sweep.error().message == "interrupted while measuring");
  CHECK_FALSE(measure_peaks(*s.team, s.isa, 0.001, watch).has_value());
}
