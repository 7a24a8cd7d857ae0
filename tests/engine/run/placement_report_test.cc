#include "engine/run/placement_report.h"

#include <doctest/doctest.h>

#include <cstring>

#include "base/types.h"
#include "numa/memory.h"
#include "tests/engine/run/synthetic_engine.h"

using namespace cpuinfer;
using namespace cpuinfer::run;

namespace {

bool contains(const std::string& text, std::string_view part) { return text.find(part) != text.npos; }

/// This machine's only node under another number: pages that are wanted there are somewhere else.
numa::Topology renumbered(int id) {
  numa::SystemNodes system;
  system.nodes.push_back({.id = id, .cpus = {{0, 0}}, .memory_bytes = 1_GiB, .free_bytes = 1_GiB, .reserved = {}});
  auto topology = numa::Topology::from(system);
  REQUIRE(topology);
  return std::move(*topology);
}

}  // namespace

TEST_CASE("a loaded engine: every purpose of the plan has pages, all on their nodes") {
  EngineOptions options;
  options.synthetic = small_model(4096);
  options.threads = 3;
  options.machine.simulated_nodes = 3;
  const std::unique_ptr<Engine> engine = loaded_engine(options);
  auto sequence = engine->start_sequence(600);
  REQUIRE(sequence);
  const std::vector<TokenId> tokens(300, 7);
  REQUIRE(engine->append(*sequence, tokens, {}));
  const auto report = engine->measure_placement();
  if (!report) {
    MESSAGE("SKIPPED: " << report.error().message);
    return;
  }
  for (const load::PlanLine& planned : engine->plan().lines) {
    // Not in buffers of the engine.
    if (planned.purpose == "reserve" || planned.purpose == "requests" || planned.purpose == "page tables" ||
        planned.purpose == "loading")
      continue;
    CAPTURE(planned.purpose);
    int64_t pages = 0;
    for (const PlacementLine& line : report->lines)
      if (line.purpose == planned.purpose) CHECK(line.pages.untouched == 0);
    for (const PlacementLine& line : report->lines)
      if (line.purpose == planned.purpose) pages += line.pages.local + line.pages.other + line.pages.untouched;
    CHECK(pages * 4096 >= planned.total());
  }
  CHECK(report->workers.size() == 3);
  // Of a machine with several nodes the simulated ones may be anywhere.
  if (engine->topology().nodes().size() > 1) return;
  CHECK(report->local_share() == 1);
  CHECK(report->is_good());
  CHECK(report->cause.empty());
  CHECK(contains(report->sentence(), "100.00 % of "));
  CHECK(contains(report->table(), "KV cache"));
  const Json json = report->json();
  CHECK(json.find("placement")->as_array().size() == report->lines.size());
  CHECK(json.find("workers")->as_array().size() == 3);
}

TEST_CASE("pages on another node are counted, are not good, and have a cause") {
  const auto machine = numa::Topology::detect();
  REQUIRE(machine);
  const auto team = numa::Team::create(*machine, {.threads = 1});
  REQUIRE(team);
  auto buffer = numa::NodeBuffer::allocate(64_KiB, 0, *machine, numa::Pages::kSmall);
  REQUIRE(buffer);
  std::memset(buffer->data(), 1, 32_KiB);
  const numa::Topology wanted = renumbered(77);
  const auto report = measure_placement({{"KV cache", 0, buffer->data(), buffer->size()}}, **team, wanted);
  if (!report) {
    MESSAGE("SKIPPED: " << report.error().message);
    return;
  }
  REQUIRE(report->lines.size() == 1);
  CHECK(report->lines[0].node_id == 77);
  CHECK(report->lines[0].pages.other == 8);
  CHECK(report->lines[0].pages.untouched == 8);
  CHECK(report->local_share() == 0);
  CHECK_FALSE(report->is_good());
  CHECK_FALSE(report->cause.empty());
  CHECK(contains(report->sentence(), "0.00 % of 8 pages are on their nodes; most likely because " + report->cause));
}

TEST_CASE("threads that run elsewhere are counted and named") {
  PlacementReport report;
  report.workers = {{0, {0}, 0}, {0, {1}, 5}, {1, {2, 3}, 3}, {1, {}, 9}};
  report.worker_node_ids = {0, 0, 4, 4};
  CHECK(report.stray_workers() == 1);
  CHECK_FALSE(report.is_good());
  CHECK(contains(report.sentence(), "1 of 4 threads are not on their CPUs"));
  CHECK(contains(report.table(), "thread 1    node 0, CPU 1, but last seen on CPU 5"));
  CHECK(contains(report.table(), "thread 3    node 4, CPU any"));
}
