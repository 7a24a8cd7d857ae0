#include "engine/load/prediction.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <string>

#include "base/format.h"
#include "base/json.h"

using namespace cpuinfer;
using namespace cpuinfer::load;

namespace {

model::ModelConfig config_of(const std::string& text) {
  const auto json = parse_json(text, "config");
  REQUIRE(json);
  const auto config = model::parse_model_config(*json);
  REQUIRE_MESSAGE(config, (config ? "" : config.error().message));
  return *config;
}

model::ModelConfig qwen3_30b(int chosen) {
  return config_of(format(R"({{"architectures":["Qwen3MoeForCausalLM"],"hidden_size":2048,
    "num_hidden_layers":2,"num_attention_heads":32,"num_key_value_heads":4,"head_dim":128,"vocab_size":151936,
    "intermediate_size":6144,"num_experts":128,"num_experts_per_tok":{},"moe_intermediate_size":768,
    "norm_topk_prob":true,"rms_norm_eps":1e-6,"tie_word_embeddings":false,"max_position_embeddings":262144,
    "rope_theta":1000000.0}})",
                          chosen));
}

// Units of 1 KiB: qkv 4, output 2, gate and up 4, down 2, lm_head 4; 32 KiB of keys and values per 256 tokens.
model::ModelConfig tiny_dense() {
  return config_of(R"({"architectures":["Qwen3ForCausalLM"],"hidden_size":32,"num_hidden_layers":1,
    "num_attention_heads":2,"num_key_value_heads":1,"head_dim":16,"vocab_size":64,"intermediate_size":32,
    "tie_word_embeddings":false,"max_position_embeddings":4096,"rope_theta":10000.0})");
}

struct Planned {
  PlanRequest request;
  PlannedModel model;
  DecodePrediction predict(const MachineSpeed& speed, int64_t context = 0) const {
    return predict_decode(model, request, speed, {&context, 1})[0];
  }
};

Planned planned_for(const model::ModelConfig& config, int nodes, int workers_of_node, bool whole_experts = false) {
  Planned planned;
  planned.request = {.limits = {.rows = 1, .logit_rows = 1, .sequences = 1, .context_tokens = 4096},
                     .kv_pages = 16,
                     .context_limit = config.max_positions,
                     .whole_experts = whole_experts};
  for (int node = 0; node < nodes; ++node)
    planned.request.worker_nodes.insert(planned.request.worker_nodes.end(), workers_of_node, node);
  const auto topology = numa::Topology::synthetic(format("numa:{}(memory=64GB) core:{} pu:1", nodes, workers_of_node));
  REQUIRE(topology);
  auto model = plan_model(config, planned.request, *topology, {1024_GiB, "a test"});
  REQUIRE(model);
  planned.model = std::move(*model);
  return planned;
}

// Every way of choosing, one by one: bit e of `set` is expert e.
double most_by_counting(const std::vector<int>& node_experts, int chosen) {
  const int all = std::accumulate(node_experts.begin(), node_experts.end(), 0);
  double sum = 0, ways = 0;
  for (unsigned set = 0; set < 1u << all; ++set) {
    if (__builtin_popcount(set) != chosen) continue;
    int most = 0, first = 0;
    for (const int count : node_experts) {
      most = std::max(most, __builtin_popcount(set >> first & ((1u << count) - 1)));
      first += count;
    }
    sum += most;
    ++ways;
  }
  return sum / ways;
}

double share_of(int nodes, int chosen) {
  const std::vector<int> experts(nodes, 128 / nodes);
  return 100.0 * chosen / (nodes * expected_most_experts(experts, chosen));
}

}  // namespace

TEST_CASE("the most of the chosen experts on one node, as published shapes have it") {
  CHECK(expected_most_experts(std::vector<int>{64, 64}, 8) == doctest::Approx(5.06).epsilon(0.001));
  CHECK(share_of(2, 8) == doctest::Approx(79).epsilon(0.005));
  CHECK(share_of(4, 8) == doctest::Approx(57).epsilon(0.008));
  CHECK(share_of(8, 8) == doctest::Approx(40).epsilon(0.0125));
  CHECK(share_of(2, 16) == doctest::Approx(84).epsilon(0.006));
  CHECK(share_of(4, 16) == doctest::Approx(67).epsilon(0.0075));
  CHECK(share_of(8, 16) == doctest::Approx(50).epsilon(0.01));
  CHECK(share_of(1, 8) == doctest::Approx(100));
}

TEST_CASE("the most of the chosen experts on one node is that of all ways counted") {
  for (const std::vector<int>& nodes :
       {std::vector<int>{8, 8}, {5, 6, 5}, {1, 9}, {4, 4, 4, 4}, {12}, {0, 7}, {3, 0, 4}})
    for (int chosen = 1; chosen <= std::accumulate(nodes.begin(), nodes.end(), 0); ++chosen) {
      INFO(format("{} of {}", chosen, fmt::join(nodes, "+")));
      CHECK(expected_most_experts(nodes, chosen) == doctest::Approx(most_by_counting(nodes, chosen)).epsilon(1e-9));
    }
  // Large numbers neither overflow nor vanish.
  CHECK(expected_most_experts(std::vector<int>{2048, 2048}, 4096) == doctest::Approx(2048));
  CHECK(expected_most_experts(std::vector<int>{512, 512, 512, 512}, 1024) == doctest::Approx(256 + 14).epsilon(0.02));
}

TEST_CASE("a tiny model by hand") {
  const model::ModelConfig config = tiny_dense();
  const Planned one = planned_for(config, 1, 4);
  // 16 units of weights at one unit per second.
  const DecodePrediction weights = one.predict({.node_bandwidth = 1024});
  CHECK(weights.bytes == 16 * 1024);
  CHECK(weights.seconds == doctest::Approx(16));
  CHECK(weights.bandwidth_share == doctest::Approx(1));
  CHECK(weights.meeting_seconds == 0);
  CHECK(weights.tokens_per_second() == doctest::Approx(1.0 / 16));

  // Two units are read by two of four workers, at half of the bandwidth: 4 + 4 + 4 + 4 + 4.
  const DecodePrediction cores = one.predict({.node_bandwidth = 1024, .core_bandwidth = 256});
  CHECK(cores.seconds == doctest::Approx(20));
  CHECK(cores.bandwidth_share == doctest::Approx(0.8));
  // Four cores that together read less than the node gives.
  CHECK(one.predict({.node_bandwidth = 8192, .core_bandwidth = 256}).seconds == doctest::Approx(20));

  // Begin and end of a step, output, two of the MLP, the layer's end, what the heads found; q, k and v on the node.
  const DecodePrediction meeting =
      one.predict({.node_bandwidth = 1024, .meeting_seconds = 1, .node_meeting_seconds = 0.25});
  CHECK(meeting.meeting_seconds == doctest::Approx(7.25));
  CHECK(meeting.reading_seconds == doctest::Approx(16));
  CHECK(meeting.seconds == doctest::Approx(23.25));

  // One page of keys and values, then superblocks whose results are merged.
  CHECK(one.predict({.node_bandwidth = 1024}, 256).seconds == doctest::Approx(16 + 32));
  const MachineSpeed only_meetings = {.node_bandwidth = 1e30, .meeting_seconds = 1, .node_meeting_seconds = 0.25};
  CHECK(one.predict(only_meetings, 1023).seconds == doctest::Approx(7.25));
  CHECK(one.predict(only_meetings, 1024).seconds == doctest::Approx(7.5));

  // On two nodes: the same bytes in half of the time, and activations of the other node. Two residual rows, those of
  // the MLP, and what the heads found; the one kv head is striped, so its 64 queries, keys and values too.
  const Planned two = planned_for(config, 2, 2);
  CHECK(two.predict({.node_bandwidth = 1024}).seconds == doctest::Approx(8));
  const double fetched = (2 * 32 * 4 + 32 * 2 + 32 * 2 + 64 * 4) / 2.0;
  CHECK(two.predict({.node_bandwidth = 1024, .remote_bandwidth = 64}).seconds == doctest::Approx(8 + fetched / 64));
}

TEST_CASE("slices reach all of the bandwidth, whole experts what their distribution allows") {
  for (const int chosen : {8, 16}) {
    for (const int nodes : {1, 2, 4, 8}) {
      CAPTURE(chosen);
      CAPTURE(nodes);
      const MachineSpeed speed = {.node_bandwidth = 250e9};
      const Planned slice = planned_for(qwen3_30b(chosen), nodes, 8);
      CHECK(slice.predict(speed).bandwidth_share == doctest::Approx(1));
      const Planned whole = planned_for(qwen3_30b(chosen), nodes, 8, true);
      CHECK(whole_expert_share(whole.model) == doctest::Approx(share_of(nodes, chosen) / 100));
      const DecodePrediction slow = whole.predict(speed);
      CHECK(slow.bytes == doctest::Approx(slice.predict(speed).bytes));
      // Only the experts are slower.
      const double experts = 2.0 * chosen * 3 * 2048 * 768 * 2;
      const double seconds =
          slice.predict(speed).seconds + experts / (nodes * 250e9) * (100 / share_of(nodes, chosen) - 1);
      CHECK(slow.seconds == doctest::Approx(seconds));
    }
  }
}

TEST_CASE("more of anything is never slower") {
  const int64_t contexts[] = {0, 1000, 32768, 262144};
  for (const bool whole : {false, true}) {
    for (const int nodes : {1, 2, 3, 6}) {
      const Planned planned = planned_for(qwen3_30b(8), nodes, 7, whole);
      double before = 1e30;
      for (const double factor : {0.1, 0.5, 1.0, 1.01, 2.0, 10.0}) {
        const MachineSpeed speed = {.node_bandwidth = factor * 250e9,
                                    .core_bandwidth = 15e9,
                                    .remote_bandwidth = factor * 60e9,
                                    .meeting_seconds = 1e-6,
                                    .node_meeting_seconds = 0.5e-6};
        const std::vector<DecodePrediction> all = predict_decode(planned.model, planned.request, speed, contexts);
        REQUIRE(all.size() == 4);
        for (size_t i = 1; i < all.size(); ++i) CHECK(all[i].seconds > all[i - 1].seconds);
        for (size_t i = 0; i < all.size(); ++i) {
          CHECK(all[i].context_tokens == contexts[i]);
          CHECK(all[i].bandwidth_share <= 1 + 1e-9);
          CHECK(all[i].seconds >= all[i].reading_seconds + all[i].meeting_seconds);
        }
        CHECK(all[3].seconds <= before);
        before = all[3].seconds;
      }
    }
  }
}
