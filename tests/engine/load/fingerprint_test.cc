#include "engine/load/fingerprint.h"

#include <doctest/doctest.h>

#include <functional>
#include <set>
#include <string>
#include <utility>

#include "engine/load/synthetic.h"

using namespace cpuinfer;
using namespace cpuinfer::load;

namespace {

// Sizes that leave padding everywhere, a mixture of experts and a dense layer, biases.
constexpr const char* kOdd = R"({"architectures":["Qwen3MoeForCausalLM"],"hidden_size":72,"num_hidden_layers":2,
  "num_attention_heads":3,"num_key_value_heads":1,"head_dim":24,"vocab_size":37,"intermediate_size":52,
  "num_experts":5,"num_experts_per_tok":2,"moe_intermediate_size":20,"norm_topk_prob":true,"mlp_only_layers":[1],
  "rms_norm_eps":1e-6,"tie_word_embeddings":false,"attention_bias":true,"max_position_embeddings":64,
  "rope_theta":10000.0})";

// Random weights on some nodes, their fingerprint, and what it is after `change` of the model.
storage::Digest128 fingerprint(uint64_t seed, int threads, const model::Placement& placement,
                               const std::function<void(model::Model&)>& change = {}) {
  const auto config = model::parse_model_config(*parse_json(kOdd, "config"));
  REQUIRE(config);
  const auto topology = numa::Topology::detect();
  REQUIRE(topology);
  const auto team = numa::Team::create(*topology, {.threads = threads, .nodes = placement.nodes()});
  REQUIRE(team);
  const auto model = model::create_model(*config, placement);
  REQUIRE(model);
  const auto memory = fill_synthetic(**model, seed, **team, *topology);
  REQUIRE(memory);
  if (change) change(**model);
  return fingerprint_weights(**model, **team);
}

}  // namespace

TEST_CASE("a fingerprint does not depend on threads, nodes and placement") {
  const storage::Digest128 one = fingerprint(7, 1, model::Placement::even(1));
  CHECK(one != storage::Digest128{});
  CHECK(fingerprint(7, 2, model::Placement::even(1)) == one);
  CHECK(fingerprint(7, 2, model::Placement::even(2)) == one);
  CHECK(fingerprint(7, 4, model::Placement::even(3)) == one);
  model::Placement uneven = model::Placement::even(2);
  uneven.node_shares = {1, 3};
  CHECK(fingerprint(7, 3, uneven) == one);
  model::Placement whole = model::Placement::even(2);
  whole.expert_nodes = {{0, 1, 1, 0, 1}, {}};
  CHECK(fingerprint(7, 3, whole) == one);
  CHECK(fingerprint(8, 1, model::Placement::even(1)) != one);
}

TEST_CASE("a fingerprint depends on every weight and on its place") {
  const storage::Digest128 one = fingerprint(7, 1, model::Placement::even(1));
  std::set<std::string> seen = {one.hex()};
  int weights = 0;
  fingerprint(7, 1, model::Placement::even(1),
              [&](model::Model& model) { model.visit_weights([&](const model::WeightSpec&) { ++weights; }); });
  CHECK(weights > 25);
  for (int wanted = 0; wanted < weights; ++wanted) {
    int i = 0;
    const auto changed = fingerprint(7, 2, model::Placement::even(1), [&](model::Model& model) {
      model.visit_weights([&](const model::WeightSpec& spec) {
        if (i++ != wanted) return;
        if (spec.matrix != nullptr)
          spec.matrix->unit(0, spec.matrix->segments() - 1, spec.matrix->units() - 1)->bits ^= 1;
        else
          spec.vector->on(0).back() += 1.0f;
      });
    });
    CHECK(seen.insert(changed.hex()).second);
  }
  // The same bytes elsewhere.
  const auto swapped = fingerprint(7, 1, model::Placement::even(1), [](model::Model& model) {
    model.visit_weights([](const model::WeightSpec& spec) {
      if (weight_name(spec) != "model.embed_tokens.weight") return;
      bf16* const first = spec.matrix->unit(0, 0, 0);
      for (int64_t i = 0; i < spec.matrix->unit_elements(); ++i) std::swap(first[i], spec.matrix->unit(0, 0, 1)[i]);
    });
  });
  CHECK(swapped != one);
}
