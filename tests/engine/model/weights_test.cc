#include "engine/model/weights.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>

#include "engine/model/kv_cache.h"
#include "engine/model/workspace.h"

using namespace cpuinfer;
using namespace cpuinfer::model;

TEST_CASE("a matrix in one segment pads its terms to 32 and its outputs to 16") {
  const PackedMatrix matrix(40, 70, 0, UnitSplit::replicated(1));
  CHECK(matrix.units() == 3);
  CHECK(matrix.segments() == 1);
  CHECK(matrix.segment_terms(0) == 70);
  CHECK(matrix.segment_stride() == 96);
  CHECK(matrix.shard_bytes(0) == 3 * 16 * 96 * 2);
}

TEST_CASE("segments: all of one length but the last") {
  const PackedMatrix matrix(16, 600, 256, UnitSplit::replicated(1));
  CHECK(matrix.segments() == 3);
  CHECK(matrix.segment_terms(0) == 256);
  CHECK(matrix.segment_terms(2) == 88);
  CHECK(matrix.segment_stride() == 256);
  const PackedMatrix odd(16, 240, 80, UnitSplit::replicated(1));
  CHECK(odd.segments() == 3);
  CHECK(odd.segment_stride() == 96);
  const PackedMatrix shorter(16, 40, 256, UnitSplit::replicated(1));
  CHECK(shorter.segments() == 1);
  CHECK(shorter.segment_stride() == 64);
}

TEST_CASE("units are dealt to nodes whole, and every output can be read back from its node") {
  PackedMatrix matrix(100, 64, 32, Placement::even(3).sliced());
  CHECK(matrix.units() == 7);
  std::vector<std::vector<bf16>> memory;
  for (int node = 0; node < 3; ++node) {
    auto& shard = memory.emplace_back(matrix.shard_bytes(node) / sizeof(bf16));
    matrix.place(node, shard.data());
  }
  CHECK(matrix.shard(0).units == numa::Range{0, 2});
  CHECK(matrix.shard(2).units == numa::Range{5, 7});
  CHECK(matrix.node_of(4) == 1);
  for (int unit = 0; unit < 7; ++unit) {
    for (int segment = 0; segment < 2; ++segment) {
      std::vector<std::vector<bf16>> rows(16, std::vector<bf16>(32));
      const std::byte* pointers[16];
      for (int i = 0; i < 16; ++i) {
        for (int k = 0; k < 32; ++k) rows[i][k] = to_bf16(static_cast<float>(unit * 16 + i + segment * 32 + k));
        pointers[i] = reinterpret_cast<const std::byte*>(rows[i].data());
      }
      kernels::pack_unit(pointers, DType::kBF16, 32, 32, matrix.unit(matrix.node_of(unit), segment, unit));
    }
  }
  std::vector<bf16> row(64);
  for (int output = 0; output < 100; ++output) {
    matrix.read_output(output, row.data());
    for (int k = 0; k < 64; ++k) REQUIRE(to_float(row[k]) == to_float(to_bf16(static_cast<float>(output + k))));
  }
}

TEST_CASE("KV pages come with values of zero, run out with a sentence, and come back") {
  ModelConfig config;
  config.layers = 2;
  config.kv_heads = 3;
  config.heads = 3;
  config.head_dim = 40;  // padded to 64
  const auto topology = numa::Topology::detect();
  auto cache = KvCache::create(config, 2, 1, *topology);
  REQUIRE(cache);
  CHECK(KvCache::page_bytes(config) == 2 * 3 * 2 * 256 * 64 * 2);
  CHECK(KvCache::pages_for(0) == 0);
  CHECK(KvCache::pages_for(256) == 1);
  CHECK(KvCache::pages_for(257) == 2);
  const auto first = cache->allocate({});
  REQUIRE(first);
  REQUIRE(cache->allocate({}));
  const auto third = cache->allocate({});
  REQUIRE_FALSE(third);
  CHECK(third.error().code == ErrorCode::kDoesNotFit);
  CHECK(third.error().message == "all 2 KV pages (512 tokens) are in use");
  cache->values(1, 2, *first)[7] = to_bf16(3);
  cache->release(*first);
  CHECK(cache->free_pages() == 1);
  const auto again = cache->allocate({});
  REQUIRE(again);
  CHECK(to_float(cache->values(1, 2, *again)[7]) == 0);
  // Heads and layers do not overlap.
  CHECK(cache->keys(1, 0, 0) - cache->keys(0, 0, 0) == 2 * 2 * 256 * 64);
  CHECK(cache->keys(0, 1, 0) - cache->keys(0, 0, 0) == 2 * 2 * 2 * 256 * 64);
  CHECK(cache->values(0, 0, 0) - cache->keys(0, 0, 0) == 256 * 64);
}

TEST_CASE("a workspace is as large as it says") {
  ModelConfig config;
  config.layers = 2;
  config.hidden = 40;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 24;
  config.vocab = 100;
  config.intermediate = 72;
  config.experts = 5;
  config.experts_per_token = 3;
  config.moe_intermediate = 20;
  config.moe_layers = {true, false};
  const auto topology = numa::Topology::detect();
  const StepLimits limits = {.rows = 9, .logit_rows = 2, .sequences = 1, .context_tokens = 3000};
  for (const int nodes : {1, 3}) {
    CAPTURE(nodes);
    const std::vector<int> workers = {0, 0, nodes / 2, nodes - 1};
    for (const bool whole : {false, true}) {
      Placement placement = Placement::even(nodes);
      if (whole) placement.expert_nodes = {std::vector<int>(5, 0), {}};
      auto workspace = Workspace::create(config, limits, placement, workers, *topology);
      REQUIRE(workspace);
      CHECK(workspace->workers.size() == 4);
      CHECK((workspace->expert_outputs.data == nullptr) == !whole);
      const std::vector<int64_t> bytes = Workspace::node_bytes(config, limits, placement, workers);
      std::vector<int64_t> held(nodes, 0);
      for (const numa::NodeBuffer& buffer : workspace->memory())
        for (const numa::NodeSlice& slice : buffer.slices()) held[slice.node] += slice.bytes;
      CHECK(held == bytes);
      // The last piece ends where the memory of its node ends.
      const numa::NodeBuffer& last = workspace->memory().back();
      CHECK(reinterpret_cast<const std::byte*>(workspace->workers[3].used_experts) + 64 == last.data() + last.size());
      // Copies are the node's own where there are several.
      CHECK((workspace->nodes[0].attention.data == workspace->attention.data) == (nodes == 1));
    }
  }
}

TEST_CASE("kv heads and superblocks go around the nodes: each head's stripe has a node, and nodes have equal parts") {
  for (const int heads : {1, 2, 4, 8}) {
    for (const int nodes : {1, 2, 3, 4, 6, 8}) {
      CAPTURE(heads);
      CAPTURE(nodes);
      const KvStripes stripes(heads, nodes);
      std::vector<int> count(nodes, 0);
      for (int head = 0; head < heads; ++head)
        for (int stripe = 0; stripe < stripes.stripes(); ++stripe) ++count[stripes.node(head, stripe)];
      for (const int n : count) CHECK(n == heads * stripes.stripes() / nodes);
      if (stripes.stripes() > 1) continue;
      for (int node = 0; node < nodes; ++node)
        for (int64_t head = stripes.heads_of(node).begin; head < stripes.heads_of(node).end; ++head)
          CHECK(stripes.node(static_cast<int>(head), 0) == node);
    }
  }
}

TEST_CASE("superblocks of a sequence take turns on the nodes, whoever else has pages") {
  ModelConfig config;
  config.layers = 1;
  config.heads = config.kv_heads = 4;
  config.head_dim = 32;
  const auto topology = numa::Topology::detect();
  auto cache = KvCache::create(config, 42, 8, *topology);
  REQUIRE(cache);
  CHECK(cache->stripes().stripes() == 2);
  int64_t held = 0;
  for (const numa::NodeBuffer& buffer : cache->memory()) held += buffer.size();
  CHECK(held == 42 * KvCache::page_bytes(config));

  std::vector<int> one, two;
  for (int i = 0; i < 42; ++i) {
    // Two sequences that grow in turns; together they need every page there is.
    std::vector<int>& pages = i % 3 == 0 ? two : one;
    const auto page = cache->allocate(pages);
    REQUIRE(page);
    pages.push_back(*page);
  }
  CHECK(cache->free_pages() == 0);
  for (int head = 0; head < 4; ++head) {
    // The first superblocks, while there is a choice.
    for (int i = 0; i < 12; ++i)
      CHECK(cache->node_of(head, one[i]) == 2 * head + (cache->node_of(head, one[0]) + i / 4) % 2);
  }
  // No two pages share memory.
  std::vector<const bf16*> begins;
  for (int page = 0; page < 42; ++page)
    for (int head = 0; head < 4; ++head) begins.push_back(cache->keys(0, head, page));
  std::sort(begins.begin(), begins.end());
  CHECK(std::adjacent_find(begins.begin(), begins.end()) == begins.end());
}

TEST_CASE("whole experts are dealt by number, and by use where it is known") {
  for (const int nodes : {1, 2, 3, 8}) {
    const std::vector<int> alike = balance_experts(128, nodes, {});
    for (int node = 0; node < nodes; ++node)
      CHECK(std::abs(std::count(alike.begin(), alike.end(), node) - 128 / nodes) <= 1);
  }
  // Two busy experts among idle ones are kept apart; the numbers stay equal.
  const std::vector<double> usage = {9, 0, 8, 1, 1, 1, 0, 0};
  const std::vector<int> nodes = balance_experts(8, 2, usage);
  CHECK(nodes[0] != nodes[2]);
  CHECK(std::count(nodes.begin(), nodes.end(), 0) == 4);
  double load[2] = {0, 0};
  for (int e = 0; e < 8; ++e) load[nodes[e]] += usage[e];
  CHECK(std::abs(load[0] - load[1]) <= 2);
}
