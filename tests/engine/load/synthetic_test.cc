#include "engine/load/synthetic.h"

#include <doctest/doctest.h>

#include <cmath>

#include "base/json.h"

using namespace cpuinfer;
using namespace cpuinfer::load;

namespace {

// Sizes that leave padding everywhere: 72 terms, 20 intermediate, 3 heads of 24, 37 tokens.
constexpr const char* kOdd = R"({"architectures":["Qwen3MoeForCausalLM"],"hidden_size":72,"num_hidden_layers":2,
  "num_attention_heads":3,"num_key_value_heads":1,"head_dim":24,"vocab_size":37,"intermediate_size":52,
  "num_experts":5,"num_experts_per_tok":2,"moe_intermediate_size":20,"norm_topk_prob":true,"mlp_only_layers":[1],
  "rms_norm_eps":1e-6,"tie_word_embeddings":false,"attention_bias":true,"max_position_embeddings":64,
  "rope_theta":10000.0})";

struct Filled {
  std::unique_ptr<model::Model> model;
  std::unique_ptr<numa::Team> team;
  Result<WeightMemory> memory;
};

Filled filled(uint64_t seed, int threads, int nodes, const LoadOptions& options = {}) {
  const auto json = parse_json(kOdd, "config");
  REQUIRE(json);
  const auto config = model::parse_model_config(*json);
  REQUIRE_MESSAGE(config, (config ? "" : config.error().message));
  const auto topology = numa::Topology::detect();
  REQUIRE(topology);
  auto team = numa::Team::create(*topology, {.threads = threads, .nodes = nodes});
  REQUIRE(team);
  auto model = model::create_model(*config, model::Placement::even(nodes));
  REQUIRE(model);
  Filled result{std::move(*model), std::move(*team), WeightMemory()};
  result.memory = fill_synthetic(*result.model, seed, *result.team, *topology, options);
  return result;
}

// All numbers in the order of use, vectors as they are, matrices row by row.
std::vector<float> numbers(model::Model& model) {
  std::vector<float> all;
  model.visit_weights([&](const model::WeightSpec& spec) {
    if (spec.vector != nullptr) {
      const std::span<const float> values = spec.vector->on(spec.vector->nodes() - 1);
      all.insert(all.end(), values.begin(), values.end());
      return;
    }
    std::vector<bf16> row(spec.matrix->terms());
    for (int output = 0; output < spec.matrix->outputs(); ++output) {
      spec.matrix->read_output(output, row.data());
      for (const bf16 value : row) all.push_back(to_float(value));
    }
  });
  return all;
}

}  // namespace

TEST_CASE("random numbers: bounds, mean, deviation, and the same for the same key") {
  std::vector<bf16> first(1 << 16), second(1 << 16);
  for (const int exponent : {-6, 0, 3}) {
    fill_random(7, exponent, first);
    fill_random(7, exponent, second);
    CHECK(first == second);
    fill_random(8, exponent, second);
    CHECK(first != second);
    double sum = 0, squares = 0;
    for (const bf16 value : first) {
      const float x = std::ldexp(to_float(value), -exponent);
      CHECK_MESSAGE((std::fabs(x) >= 0.125f && std::fabs(x) < 2.0f), x);
      sum += x;
      squares += x * x;
    }
    CHECK(std::fabs(sum / static_cast<double>(first.size())) < 0.01);
    CHECK(std::sqrt(squares / static_cast<double>(first.size())) == doctest::Approx(0.88).epsilon(0.01));
  }
}

TEST_CASE("the scale goes with one over the root of the terms") {
  for (const int64_t terms : {1, 16, 64, 768, 2048, 6144, 100000}) {
    const double ratio = std::ldexp(std::sqrt(static_cast<double>(terms)), exponent_for_terms(terms));
    CAPTURE(terms);
    CHECK(ratio > 0.5);
    CHECK(ratio < 2);
  }
}

TEST_CASE("a seed gives the same weights for any threads and nodes") {
  const Filled reference = filled(3, 1, 1);
  REQUIRE(reference.memory);
  const std::vector<float> expected = numbers(*reference.model);
  for (const int nodes : {1, 2, 3}) {
    const Filled other = filled(3, 3, nodes);
    REQUIRE(other.memory);
    CHECK(numbers(*other.model) == expected);
  }
  CHECK(numbers(*filled(4, 1, 1).model) != expected);
}

TEST_CASE("norms are 1, biases 0, padding is zero and nothing else is") {
  const Filled made = filled(0, 2, 1);
  REQUIRE(made.memory);
  made.model->visit_weights([&](const model::WeightSpec& spec) {
    CAPTURE(spec.tensors[0].name);
    if (spec.vector != nullptr) {
      CHECK_FALSE(spec.vector->empty());
      const float expected = spec.tensors[0].name.ends_with("norm.weight") ? 1.0f : 0.0f;
      for (const float value : spec.vector->on(0)) CHECK(value == expected);
      return;
    }
    const model::PackedMatrix& matrix = *spec.matrix;
    const auto exists = [&](int64_t output) {
      for (const model::RowRun& run : spec.outputs)
        if (output >= run.output && output < run.output + run.count) return run.tensor >= 0;
      return output < matrix.outputs();
    };
    for (int segment = 0; segment < matrix.segments(); ++segment) {
      for (int64_t output = 0; output < matrix.padded_outputs(); ++output) {
        std::vector<bf16> row(matrix.segment_stride());
        kernels::unpack_output(matrix.unit(0, segment, output / 16), static_cast<int>(output % 16),
                               matrix.segment_stride(), row.data());
        for (int term = 0; term < matrix.segment_stride(); ++term)
          REQUIRE((row[term] != bf16{}) == (exists(output) && term < matrix.segment_terms(segment)));
      }
    }
  });
}

TEST_CASE("progress ends with all bytes; an interruption is an error") {
  int64_t done = 0, total = 0;
  LoadOptions options;
  options.progress = [&](int64_t d, int64_t t) {
    CHECK(d >= done);
    done = d;
    total = t;
  };
  const Filled made = filled(0, 2, 1, options);
  REQUIRE(made.memory);
  int64_t expected = 0;
  made.model->visit_weights([&](const model::WeightSpec& spec) {
    if (spec.matrix != nullptr) expected += spec.matrix->shard_bytes(0);
  });
  CHECK(done == expected);
  CHECK(total == expected);

  const std::atomic<bool> cancel = true;
  options.cancel = &cancel;
  const Filled stopped = filled(0, 2, 1, options);
  REQUIRE_FALSE(stopped.memory);
  CHECK(stopped.memory.error().code == ErrorCode::kInterrupted);
  CHECK(stopped.memory.error().message == "making the weights was interrupted");
}
