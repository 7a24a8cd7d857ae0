#include "engine/model/weights.h"

#include <doctest/doctest.h>

#include "engine/model/kv_cache.h"
#include "engine/model/workspace.h"

using namespace cpuinfer;
using namespace cpuinfer::model;

TEST_CASE("a matrix in one segment pads its terms to 32 and its outputs to 16") {
  const PackedMatrix matrix(40, 70, 0, 1);
  CHECK(matrix.units() == 3);
  CHECK(matrix.segments() == 1);
  CHECK(matrix.segment_terms(0) == 70);
  CHECK(matrix.segment_stride() == 96);
  CHECK(matrix.shard_bytes(0) == 3 * 16 * 96 * 2);
}

TEST_CASE("segments: all of one length but the last") {
  const PackedMatrix matrix(16, 600, 256, 1);
  CHECK(matrix.segments() == 3);
  CHECK(matrix.segment_terms(0) == 256);
  CHECK(matrix.segment_terms(2) == 88);
  CHECK(matrix.segment_stride() == 256);
  const PackedMatrix odd(16, 240, 80, 1);
  CHECK(odd.segments() == 3);
  CHECK(odd.segment_stride() == 96);
  const PackedMatrix shorter(16, 40, 256, 1);
  CHECK(shorter.segments() == 1);
  CHECK(shorter.segment_stride() == 64);
}

TEST_CASE("units are dealt to nodes whole, and every output can be read back from its node") {
  PackedMatrix matrix(100, 64, 32, 3);
  CHECK(matrix.units() == 7);
  std::vector<std::vector<bf16>> memory;
  for (int node = 0; node < 3; ++node) {
    auto& shard = memory.emplace_back(matrix.shard_bytes(node) / sizeof(bf16));
    matrix.place(node, shard.data());
  }
  CHECK(matrix.shard(0).units == numa::Range{0, 3});
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
  auto cache = KvCache::create(config, 2, *topology);
  REQUIRE(cache);
  CHECK(KvCache::page_bytes(config) == 2 * 3 * 2 * 256 * 64 * 2);
  CHECK(KvCache::pages_for(0) == 0);
  CHECK(KvCache::pages_for(256) == 1);
  CHECK(KvCache::pages_for(257) == 2);
  const auto first = cache->allocate();
  REQUIRE(first);
  REQUIRE(cache->allocate());
  const auto third = cache->allocate();
  REQUIRE_FALSE(third);
  CHECK(third.error().code == ErrorCode::kDoesNotFit);
  CHECK(third.error().message == "all 2 KV pages (512 tokens) are in use");
  cache->values(1, 2, *first)[7] = to_bf16(3);
  cache->release(*first);
  CHECK(cache->free_pages() == 1);
  const auto again = cache->allocate();
  REQUIRE(again);
  CHECK(to_float(cache->values(1, 2, *again)[7]) == 0);
  // Heads and layers do not overlap.
  CHECK(cache->keys(0, 1, 0) - cache->keys(0, 0, 0) == 2 * 2 * 256 * 64);
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
  auto workspace = Workspace::create(config, limits, 2, *topology);
  REQUIRE(workspace);
  CHECK(workspace->workers.size() == 2);
  CHECK(Workspace::bytes(config, limits, 3) > Workspace::bytes(config, limits, 2));
  // The last piece ends where the memory ends.
  const char* const begin = reinterpret_cast<const char*>(workspace->residual.data);
  const char* const end = reinterpret_cast<const char*>(workspace->workers[1].used_experts) + 64;
  CHECK(end - begin == Workspace::bytes(config, limits, 2));
}
