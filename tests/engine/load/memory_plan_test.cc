#include "engine/load/memory_plan.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/format.h"
#include "base/json.h"

using namespace cpuinfer;
using namespace cpuinfer::load;
namespace fs = std::filesystem;

namespace {

model::ModelConfig config_of(const char* text) {
  const auto json = parse_json(text, "config");
  REQUIRE(json);
  const auto config = model::parse_model_config(*json);
  REQUIRE_MESSAGE(config, (config ? "" : config.error().message));
  return *config;
}

// Qwen3-30B-A3B as published.
constexpr const char* kQwen3_30B = R"({"architectures":["Qwen3MoeForCausalLM"],"hidden_size":2048,
  "num_hidden_layers":48,"num_attention_heads":32,"num_key_value_heads":4,"head_dim":128,"vocab_size":151936,
  "intermediate_size":6144,"num_experts":128,"num_experts_per_tok":8,"moe_intermediate_size":768,
  "norm_topk_prob":true,"rms_norm_eps":1e-6,"tie_word_embeddings":false,"max_position_embeddings":40960,
  "rope_theta":1000000.0,"torch_dtype":"bfloat16"})";

// Nobody's checkpoint: 48 heads, hidden 6144, 12 of 128 experts of width 1024.
constexpr const char* kWide = R"({"architectures":["Qwen3MoeForCausalLM"],"hidden_size":6144,
  "num_hidden_layers":62,"num_attention_heads":48,"num_key_value_heads":8,"head_dim":128,"vocab_size":151936,
  "intermediate_size":8192,"num_experts":128,"num_experts_per_tok":12,"moe_intermediate_size":1024,
  "norm_topk_prob":true,"rms_norm_eps":1e-6,"tie_word_embeddings":false,"max_position_embeddings":262144,
  "rope_theta":10000000.0,"torch_dtype":"bfloat16"})";

// Workers of a machine: every core, node by node.
std::vector<int> workers_of(const numa::Topology& topology, int nodes) {
  std::vector<int> worker_nodes;
  for (int node = 0; node < nodes; ++node) worker_nodes.insert(worker_nodes.end(), topology.home(node).cores, node);
  return worker_nodes;
}

PlannedModel planned_for(const model::ModelConfig& config, int64_t context, int nodes, const char* machine,
                         int64_t available = 4096_GiB, bool whole_experts = false) {
  const auto topology = numa::Topology::synthetic(machine);
  REQUIRE(topology);
  auto planned = plan_model(config,
                            {.limits = {.rows = 512, .logit_rows = 1, .sequences = 1, .context_tokens = context},
                             .kv_pages = model::KvCache::pages_for(context),
                             .context_limit = config.max_positions,
                             .worker_nodes = workers_of(*topology, nodes),
                             .whole_experts = whole_experts},
                            *topology, {available, "a test"});
  REQUIRE(planned);
  return std::move(*planned);
}

MemoryPlan plan_of(const model::ModelConfig& config, int64_t context, int nodes, const char* machine,
                   int64_t available = 4096_GiB) {
  return planned_for(config, context, nodes, machine, available).plan;
}

const PlanLine& line_for(const MemoryPlan& plan, const char* purpose) {
  for (const PlanLine& line : plan.lines)
    if (line.purpose == purpose) return line;
  FAIL("no line " << purpose);
  return plan.lines[0];
}

int64_t bytes_for(const MemoryPlan& plan, const char* purpose) { return line_for(plan, purpose).total(); }

}  // namespace

TEST_CASE("Qwen3-30B-A3B: the bytes are those of the checkpoint") {
  const MemoryPlan plan = plan_of(config_of(kQwen3_30B), 32768, 1, "numa:1(memory=1024GB) core:8 pu:1");
  CHECK(plan.fits());
  CHECK(bytes_for(plan, "experts") == int64_t{48} * 128 * 3 * 2048 * 768 * 2);
  CHECK(bytes_for(plan, "attention") == int64_t{48} * 2048 * (2 * 4096 + 2 * 512) * 2);
  CHECK(bytes_for(plan, "router") == int64_t{48} * 128 * 2048 * 2);
  CHECK(bytes_for(plan, "embedding") == int64_t{151936} * 2048 * 2);
  CHECK(bytes_for(plan, "lm_head") == int64_t{151936} * 2048 * 2);
  CHECK(plan.kv_bytes_per_token == 96 * 1024);
  CHECK(bytes_for(plan, "KV cache") == int64_t{32768} * 96 * 1024);
}

TEST_CASE("a wide model plans on eight nodes, and its weights are spread evenly") {
  const MemoryPlan plan = plan_of(config_of(kWide), 262144, 8, "numa:8(memory=256GB) core:8 pu:2");
  CHECK(plan.fits());
  const PlanLine& experts = line_for(plan, "experts");
  CHECK(experts.total() == int64_t{62} * 128 * 3 * 6144 * 1024 * 2);
  for (const int64_t bytes : experts.node_bytes) CHECK(bytes == experts.total() / 8);
}

TEST_CASE("what does not fit is refused with the table and a context that would fit") {
  const auto config = config_of(kQwen3_30B);
  const MemoryPlan plan = plan_of(config, 32768, 1, "numa:1(memory=1024GB) core:8 pu:1", 59_GiB);
  CHECK_FALSE(plan.fits());
  const auto refused = plan.check();
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ErrorCode::kDoesNotFit);
  CHECK(refused.error().message.starts_with("not enough memory, nothing was loaded\n"));
  CHECK(refused.error().message.find("experts") != std::string::npos);
  CHECK(refused.error().message.find("(a test)") != std::string::npos);

  // The advice is true: that context fits, and one page more does not.
  const int64_t context = plan.largest_context;
  CHECK(refused.error().message.ends_with("--ctx " + std::to_string(context) + " would fit"));
  CHECK(context > 0);
  const auto with_context = [&](int64_t tokens) {
    return plan_of(config, tokens, 1, "numa:1(memory=1024GB) core:8 pu:1", 59_GiB).fits();
  };
  CHECK(with_context(context));
  CHECK_FALSE(with_context(context + 256));
}

TEST_CASE("advice stays inside the model's limit, and is not given where another node is short") {
  const auto config = config_of(kQwen3_30B);
  CHECK(plan_of(config, 4096, 1, "numa:1(memory=1024GB) core:8 pu:1").largest_context == 40960);
  const MemoryPlan plan = plan_of(config, 4096, 2, "numa:2(memory=30GB) core:8 pu:1");
  CHECK_FALSE(plan.fits());
  CHECK(plan.largest_context == 0);
}

TEST_CASE("no context helps when the weights alone are too much") {
  const MemoryPlan plan = plan_of(config_of(kQwen3_30B), 4096, 1, "numa:1(memory=1024GB) core:8 pu:1", 30_GiB);
  CHECK(plan.largest_context == 0);
  CHECK(plan.check().error().message.ends_with(
      "no context fits: free memory, or use a machine with more of it; --weights stream would fit, with a model that "
      "`cpuinfer pack` has packed"));
  const MemoryPlan tiny = plan_of(config_of(kQwen3_30B), 4096, 1, "numa:1(memory=1024GB) core:8 pu:1", 1_GiB);
  CHECK(tiny.check().error().message.ends_with("no context fits: free memory, or use a machine with more of it"));
}

namespace {

PlannedModel streaming(const model::ModelConfig& config, int64_t context, int nodes, const char* machine,
                       int64_t available) {
  const auto topology = numa::Topology::synthetic(machine);
  REQUIRE(topology);
  auto planned = plan_model(config,
                            {.limits = {.rows = 512, .logit_rows = 1, .sequences = 1, .context_tokens = context},
                             .kv_pages = model::KvCache::pages_for(context),
                             .context_limit = config.max_positions,
                             .worker_nodes = workers_of(*topology, nodes),
                             .stream_weights = true},
                            *topology, {available, "a test"});
  REQUIRE(planned);
  return std::move(*planned);
}

const PlanLine* line_of(const MemoryPlan& plan, std::string_view purpose) {
  for (const PlanLine& line : plan.lines)
    if (line.purpose == purpose) return &line;
  return nullptr;
}

}  // namespace

TEST_CASE("streaming: what is free beside all else keeps attention, then experts") {
  const auto config = config_of(kQwen3_30B);
  const PlannedModel some = streaming(config, 4096, 1, "numa:1(memory=1024GB) core:8 pu:1", 20_GiB);
  CHECK(some.plan.fits());
  CHECK(some.stream.attention_layers == 0);
  CHECK(some.stream.expert_slots > 1500);
  CHECK(some.stream.expert_slots < 2000);
  CHECK(some.stream.spare_slots == 28);
  const PlanLine* const cache = line_of(some.plan, "expert cache");
  REQUIRE(cache != nullptr);
  CHECK(cache->total() == some.stream.expert_slots * int64_t{9} * 1024 * 1024);
  CHECK(line_of(some.plan, "experts") == nullptr);
  CHECK(line_of(some.plan, "read buffers") == nullptr);
  CHECK(some.plan.total() <= 20_GiB / 16 * 15);
  CHECK(some.plan.total() > 20_GiB / 16 * 15 - 10_MiB);

  // Not even attention fits: some layers of it are read in every step.
  const PlannedModel little = streaming(config, 4096, 1, "numa:1(memory=1024GB) core:8 pu:1", 3_GiB);
  CHECK(little.plan.fits());
  CHECK(little.stream.attention_layers > kRingSlots);
  CHECK(little.stream.attention_layers < 48);
  CHECK(line_of(little.plan, "read buffers") != nullptr);

  // All fits: nothing is streamed, and the plan is that of weights in memory.
  const PlannedModel all = streaming(config, 4096, 1, "numa:1(memory=1024GB) core:8 pu:1", 100_GiB);
  CHECK_FALSE(all.stream.streams());
  CHECK(line_of(all.plan, "expert cache") == nullptr);

  // On several nodes each has its slices of every slot.
  const PlannedModel two = streaming(config, 4096, 2, "numa:2(memory=16GB) core:8 pu:1", 32_GiB);
  CHECK(two.plan.fits());
  CHECK(two.stream.expert_slots > 2000);
  CHECK(line_of(two.plan, "expert cache")->node_bytes[0] == line_of(two.plan, "expert cache")->node_bytes[1]);
}

TEST_CASE("streaming: what does not fit even so is refused with its table") {
  const PlannedModel none = streaming(config_of(kQwen3_30B), 4096, 1, "numa:1(memory=1024GB) core:8 pu:1", 1_GiB);
  CHECK_FALSE(none.plan.fits());
  const auto refused = none.plan.check();
  REQUIRE(!refused);
  CHECK(refused.error().code == ErrorCode::kDoesNotFit);
  CHECK(refused.error().message.find("expert cache") != std::string::npos);
  CHECK(refused.error().message.find("short (a test)") != std::string::npos);
  CHECK(refused.error().message.ends_with("no context fits: free memory, or use a machine with more of it"));
  // A shorter context would do.
  const PlannedModel long_context =
      streaming(config_of(kQwen3_30B), 40960, 1, "numa:1(memory=1024GB) core:8 pu:1", 5_GiB);
  CHECK_FALSE(long_context.plan.fits());
  const int64_t context = long_context.plan.largest_context;
  CHECK(context > 4096);
  CHECK(streaming(config_of(kQwen3_30B), context, 1, "numa:1(memory=1024GB) core:8 pu:1", 5_GiB).plan.fits());
}

TEST_CASE("a node that is too small is named") {
  const MemoryPlan plan = plan_of(config_of(kQwen3_30B), 32768, 2, "numa:2(memory=29GB) core:8 pu:1", 100_GiB);
  CHECK_FALSE(plan.fits());
  REQUIRE(plan.shortages.size() == 2);
  CHECK(plan.shortages[0].starts_with("node 0 needs "));
}

TEST_CASE("what all nodes use is on all of them: KV by heads, workspace, replicas of router and norms") {
  const auto config = config_of(kQwen3_30B);
  for (const int nodes : {1, 2, 3, 4, 6, 8}) {
    CAPTURE(nodes);
    const std::string machine = "numa:" + std::to_string(nodes) + "(memory=512GB) core:8 pu:1";
    const MemoryPlan plan = plan_of(config, 32768, nodes, machine.c_str());
    CHECK(plan.fits());
    const PlanLine& kv = line_for(plan, "KV cache");
    CHECK(kv.total() == int64_t{32768} * 96 * 1024);
    // 32 superblocks of 4 heads: nodes differ by what does not divide.
    for (const int64_t bytes : kv.node_bytes) {
      CHECK(bytes * nodes > kv.total() * 9 / 10);
      CHECK(bytes * nodes < kv.total() * 11 / 10);
    }
    const int64_t router = int64_t{48} * 128 * 2048 * 2;
    for (const int64_t bytes : line_for(plan, "router").node_bytes) CHECK(bytes == router);
    for (const int64_t bytes : line_for(plan, "norms and biases").node_bytes)
      CHECK(bytes == (int64_t{48} * (2 * 2048 + 2 * 128) + 2048) * 4);
    for (const int64_t bytes : line_for(plan, "workspace").node_bytes) CHECK(bytes > 8_MiB);
    // A unit of 16 outputs is the least that can be dealt.
    for (const char* purpose : {"experts", "attention", "embedding", "lm_head"}) {
      const PlanLine& line = line_for(plan, purpose);
      for (const int64_t bytes : line.node_bytes) CHECK(std::abs(bytes * nodes - line.total()) < line.total() / 16);
    }
  }
}

TEST_CASE("a node with less memory gets smaller slices, as far as the rest has room") {
  const auto config = config_of(kQwen3_30B);
  const auto machine = numa::Topology::synthetic("numa:2 core:8 pu:1");
  REQUIRE(machine);
  const PlanRequest request = {.limits = {.rows = 512, .context_tokens = 4096},
                               .kv_pages = 16,
                               .context_limit = 40960,
                               .worker_nodes = workers_of(*machine, 2)};
  const auto plan_on = [&](std::vector<int64_t> node_bytes) {
    auto planned = plan_model(config, request, machine->with_memory(node_bytes), {4096_GiB, "a test"});
    REQUIRE(planned);
    return std::move(planned->plan);
  };
  const MemoryPlan even = plan_on({64_GiB, 64_GiB});
  CHECK(even.fits());
  const PlanLine& halves = line_for(even, "experts");
  CHECK(halves.node_bytes[0] == halves.node_bytes[1]);

  const MemoryPlan uneven = plan_on({20_GiB, 64_GiB});
  CHECK(uneven.fits());
  CHECK(uneven.node_total(0) <= 20_GiB);
  CHECK(uneven.node_total(0) > 19_GiB);
  CHECK(uneven.total() == even.total());

  // Not enough in all: the shares are those of the workers, and both sentences are there.
  const MemoryPlan small = plan_on({20_GiB, 30_GiB});
  CHECK_FALSE(small.fits());
  REQUIRE(small.shortages.size() == 1);
  CHECK(small.shortages[0].starts_with("node 0 needs "));
}

TEST_CASE("advice is true where slices are dealt anew, whatever context was asked for") {
  auto config = config_of(kQwen3_30B);
  config.max_positions = 262144;
  const auto machine = numa::Topology::synthetic("numa:2 core:8 pu:1");
  REQUIRE(machine);
  const auto plan_on = [&](int64_t context, std::vector<int64_t> node_bytes) {
    auto planned = plan_model(config,
                              {.limits = {.rows = 512, .context_tokens = context},
                               .kv_pages = model::KvCache::pages_for(context),
                               .context_limit = config.max_positions,
                               .worker_nodes = workers_of(*machine, 2)},
                              machine->with_memory(node_bytes), {4096_GiB, "a test"});
    REQUIRE(planned);
    return std::move(planned->plan);
  };
  for (const int64_t large : {44, 64}) {
    CAPTURE(large);
    const std::vector<int64_t> sizes = {20_GiB, large * 1_GiB};
    const int64_t context = plan_on(4096, sizes).largest_context;
    CHECK(plan_on(262144, sizes).largest_context == context);
    CHECK(context > 4096);
    CHECK(plan_on(context, sizes).fits());
    // Not the longest to the byte, but near it.
    if (context < config.max_positions) CHECK_FALSE(plan_on(context + context / 4, sizes).fits());
  }
  CHECK(plan_on(262144, {20_GiB, 44_GiB}).check().error().message.ends_with(" would fit"));
}

TEST_CASE("weights in reserved pages of 1 GiB need no free memory") {
  // This machine's CPUs on a node with 8 GiB free and some reserved pages.
  const fs::path root = fs::temp_directory_path() / format("cpuinfer_memory_plan_test_{}", getpid());
  const auto write = [&](const fs::path& path, std::string_view text) {
    fs::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text << '\n';
  };
  const auto config = config_of(kQwen3_30B);
  const auto plan_with = [&](int giant_pages, bool pin) {
    fs::remove_all(root);
    const fs::path node = "sys/devices/system/node/node0";
    write("sys/devices/system/cpu/online", "0-63");
    write("sys/devices/system/node/online", "0-1");
    write(node / "cpulist", "0-63");
    write(node / "meminfo", "Node 0 MemTotal: 134217728 kB\nNode 0 MemFree: 8388608 kB");
    write(node / "hugepages/hugepages-1048576kB/nr_hugepages", "100");
    write(node / "hugepages/hugepages-1048576kB/free_hugepages", format("{}", giant_pages));
    write("sys/devices/system/node/node1/meminfo", "Node 1 MemTotal: 8388608 kB");
    write("proc/self/status", "Mems_allowed_list:\t0-1");
    const auto topology = numa::Topology::detect(root);
    REQUIRE(topology);
    REQUIRE(topology->nodes()[0].free_bytes == 8_GiB);
    auto planned = plan_model(config,
                              {.limits = {.rows = 512, .context_tokens = 4096},
                               .kv_pages = 16,
                               .context_limit = 40960,
                               .worker_nodes = {0, 0}},
                              pin ? *topology : topology->unpinned(), {8_GiB, "a test"});
    REQUIRE(planned);
    return std::move(planned->plan);
  };
  const MemoryPlan enough = plan_with(60, true);
  CHECK(enough.fits());
  CHECK(enough.node_reserved[0] > 56_GiB);
  CHECK(enough.table().find("in reserved 1 GiB pages") != std::string::npos);
  CHECK(enough.json().find("node_reserved_bytes")->as_array()[0].as_int() == enough.node_reserved[0]);
  CHECK(enough.largest_context == 40960);

  // Too few, or --no-pin, with which they are not taken: the weights must be free memory.
  for (const MemoryPlan& without : {plan_with(50, true), plan_with(60, false)}) {
    CHECK_FALSE(without.fits());
    CHECK(without.node_reserved[0] == 0);
    CHECK(without.table().find("reserved") == std::string::npos);
  }
  fs::remove_all(root);
}

TEST_CASE("nodes with more workers get larger slices") {
  const auto config = config_of(kQwen3_30B);
  const auto topology = numa::Topology::synthetic("numa:2(memory=512GB) core:4 pu:1");
  REQUIRE(topology);
  PlanRequest request = {.limits = {.rows = 512}, .kv_pages = 4, .context_limit = 40960};
  request.worker_nodes = {0, 0, 0, 1};
  const auto planned = plan_model(config, request, *topology, {4096_GiB, "a test"});
  REQUIRE(planned);
  const PlanLine& experts = line_for(planned->plan, "experts");
  CHECK(experts.node_bytes[0] == experts.total() / 4 * 3);
  CHECK(experts.node_bytes[1] == experts.total() / 4);
}

TEST_CASE("whole experts: equal numbers on all nodes, and slices are named where only they fit") {
  const auto config = config_of(kQwen3_30B);
  const PlannedModel planned = planned_for(config, 4096, 4, "numa:4(memory=512GB) core:8 pu:1", 4096_GiB, true);
  CHECK(planned.plan.fits());
  const PlanLine& experts = line_for(planned.plan, "experts");
  for (const int64_t bytes : experts.node_bytes) CHECK(bytes == experts.total() / 4);
  for (const std::vector<int>& layer : planned.placement.expert_nodes)
    for (int node = 0; node < 4; ++node) CHECK(std::count(layer.begin(), layer.end(), node) == 32);
}

TEST_CASE("simulated nodes share the memory of the real one") {
  const MemoryPlan plan = plan_of(config_of(kQwen3_30B), 4096, 2, "numa:1(memory=40GB) core:8 pu:1");
  CHECK_FALSE(plan.fits());
}

TEST_CASE("the JSON form has every purpose") {
  const MemoryPlan plan = plan_of(config_of(kQwen3_30B), 4096, 2, "numa:2(memory=512GB) core:8 pu:1");
  const Json json = plan.json();
  CHECK(json.find("fits")->as_bool());
  CHECK(json.find("total_bytes")->as_int() == plan.total());
  CHECK(json.find("purposes")->as_array().size() == plan.lines.size());
  CHECK(json.find("purposes")->as_array()[0].find("node_bytes")->as_array().size() == 2);
}
