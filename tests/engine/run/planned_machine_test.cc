// Plans for machines that are not there, and of other placements.
#include <doctest/doctest.h>

#include "tests/engine/checkpoint/temporary_directory.h"
#include "tests/engine/run/synthetic_engine.h"

using namespace cpuinfer;
using namespace cpuinfer::run;

namespace {

EngineOptions options_for(const char* machine, int64_t node_bytes = 64_GiB) {
  const auto topology = numa::Topology::synthetic(machine);
  REQUIRE(topology);
  EngineOptions options;
  options.synthetic = small_model(4096, 2);
  options.planned_machine = topology->with_memory(std::vector<int64_t>(topology->nodes().size(), node_bytes));
  return options;
}

std::unique_ptr<Engine> prepared(const EngineOptions& options) {
  auto engine = Engine::prepare(options);
  REQUIRE_MESSAGE(engine, (engine ? "" : engine.error().message));
  return std::move(*engine);
}

Error prepare_error(const EngineOptions& options) {
  const auto engine = Engine::prepare(options);
  REQUIRE_FALSE(engine);
  return engine.error();
}

}  // namespace

TEST_CASE("a planned machine gets its nodes, workers and memory, and no thread") {
  const auto engine = prepared(options_for("numa:8 core:64 pu:2"));
  CHECK(engine->nodes() == 8);
  CHECK(engine->workers() == 512);
  CHECK(engine->plan_request().worker_nodes.size() == 512);
  CHECK(engine->plan().fits());
  CHECK(engine->plan().available.bytes == 512_GiB);
  CHECK(engine->plan().available.reason == "the planned machine");
  CHECK(engine->describe()[4] == "threads   512 on 8 nodes of a machine that is not there");
  const auto refused = engine->load();
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ErrorCode::kUsage);
  CHECK(refused.error().message == "this is the plan of a machine that is not there: it can be looked at, not loaded");
}

TEST_CASE("a planned machine is selected from like this one") {
  EngineOptions options = options_for("numa:4 core:8 pu:2");
  options.machine.node_ids = {1, 3};
  options.machine.smt = true;
  const auto engine = prepared(options);
  CHECK(engine->nodes() == 2);
  CHECK(engine->workers() == 32);
  CHECK(engine->plan().available.bytes == 128_GiB);
  CHECK(engine->topology().nodes()[1].id == 3);
  options.machine.node_ids = {4};
  CHECK(prepare_error(options).message == "node 4 does not exist or may not be used; this machine has nodes 0-3");
}

TEST_CASE("what a planned machine has no memory for does not fit") {
  EngineOptions options = options_for("numa:2 core:4 pu:1", 1_MiB);
  const auto engine = prepared(options);
  CHECK_FALSE(engine->plan().fits());
  options = options_for("numa:2 core:4 pu:1");
  options.memory_limit_bytes = 1_MiB;
  CHECK(prepared(options)->plan().available.reason == "--memory-limit");
}

TEST_CASE("an engine plans the other placement too") {
  EngineOptions options = options_for("numa:4 core:4 pu:1");
  for (const bool whole : {false, true}) {
    options.whole_experts = whole;
    const auto engine = prepared(options);
    CHECK(engine->placement().whole_experts() == whole);
    for (const bool other : {false, true}) {
      const auto planned = engine->plan_placed(other);
      REQUIRE(planned);
      CHECK(planned->placement.whole_experts() == other);
      CHECK(planned->plan.fits());
      if (other == whole) CHECK(planned->plan.table() == engine->plan().table());
    }
  }
}

TEST_CASE("experts are balanced by a file of their usage") {
  const checkpoint::TemporaryDirectory directory;
  EngineOptions options = options_for("numa:2 core:4 pu:1");
  const std::string counts = "[9,9,9,9,9,9,9,9,0,0,0,0,0,0,0,0]";
  options.expert_usage_file = directory.write("usage.json", "{\"layers\":[" + counts + "," + counts + "]}");
  CHECK(prepare_error(options).code == ErrorCode::kUsage);
  CHECK(prepare_error(options).message ==
        "--expert-usage balances whole experts: give --placement expert too, or leave it out");
  options.whole_experts = true;
  const auto engine = prepared(options);
  int busy_on_node_0 = 0;
  for (int expert = 0; expert < 8; ++expert) busy_on_node_0 += engine->placement().expert_nodes[1][expert] == 0;
  CHECK(busy_on_node_0 == 4);
  options.expert_usage_file = directory.write("usage.json", "{\"layers\":[]}");
  CHECK(prepare_error(options).code == ErrorCode::kBadInput);
}
