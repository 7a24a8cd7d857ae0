#include "engine/model/rope_length.h"

#include <doctest/doctest.h>

using namespace cpuinfer::model;

namespace {

ModelConfig with_positions(int64_t positions) {
  ModelConfig config;
  config.max_positions = positions;
  config.rope.theta = 1e6;
  return config;
}

ModelConfig by_length(ModelConfig config) {
  config.rope_by_length = rope_by_length(config);
  const double theta = config.rope.theta;
  config.rope = {};
  config.rope.theta = theta;
  return config;
}

double factor_for(const ModelConfig& config, int64_t planned) {
  const RopeConfig rope = sequence_rope(config, planned);
  return rope.type == RopeType::kDefault ? 1 : rope.factor;
}

}  // namespace

TEST_CASE("Qwen3's first checkpoints: native to 40,960, scaled from 32,768") {
  const ModelConfig plain = with_positions(40960);
  CHECK(position_limit(plain) == 40960);
  CHECK(factor_for(plain, 100000) == 1);  // no flag, no choice
  const ModelConfig config = by_length(plain);
  CHECK(position_limit(config) == 262144);
  for (const int64_t planned : {0, 1, 32768, 32769, 40960}) CHECK(factor_for(config, planned) == 1);
  for (const int64_t planned : {40961, 65536}) CHECK(factor_for(config, planned) == 2);
  for (const int64_t planned : {65537, 131072}) CHECK(factor_for(config, planned) == 4);
  for (const int64_t planned : {131073, 262144}) CHECK(factor_for(config, planned) == 8);
  const RopeConfig rope = sequence_rope(config, 100000);
  CHECK(rope.type == RopeType::kYarn);
  CHECK(rope.original_max_positions == 32768);
  CHECK(rope.theta == 1e6);
  CHECK_FALSE(rope.attention_factor.has_value());
  CHECK(describe_rope(config) ==
        "auto, for each sequence: no scaling up to 40960 tokens, yarn factor 2 up to 65536, 4 up to 131072, 8 up to "
        "262144; theta 1000000");
  CHECK(describe_rope(plain) == "default, theta 1000000");
}

TEST_CASE("the checkpoints of July 2025 need no scaling up to 262,144") {
  const ModelConfig config = by_length(with_positions(262144));
  CHECK(factor_for(config, 262144) == 1);
  CHECK(factor_for(config, 262145) == 2);
  CHECK(position_limit(config) == 2097152);
}

TEST_CASE("a config.json that has YaRN already: auto begins from the length before it") {
  ModelConfig config = with_positions(40960);
  config.rope.type = RopeType::kYarn;
  config.rope.factor = 4;
  config.rope.original_max_positions = 32768;
  CHECK(position_limit(config) == 131072);
  CHECK(rope_by_length(config).native_positions == 40960);
  CHECK(rope_by_length(config).original_positions == 32768);
  config.max_positions = 131072;  // what YaRN reaches, written there too
  CHECK(rope_by_length(config).native_positions == 32768);
  CHECK(factor_for(by_length(config), 32769) == 2);
  // The length that Transformers takes for want of another is not what the cards scale from.
  config.max_positions = 40960;
  config.rope.original_max_positions = 40960;
  CHECK(rope_by_length(config).original_positions == 32768);
}

TEST_CASE("lengths that nothing reaches stay within what sizes are computed for") {
  const ModelConfig config = by_length(with_positions(kMaxPositions));
  CHECK(position_limit(config) == kMaxPositions);
  CHECK(factor_for(by_length(with_positions(1)), 100) == 8);
}

TEST_CASE("advice names the flag and what it reaches") {
  CHECK(scaling_advice(with_positions(40960), 131072) ==
        "--rope-scaling auto would choose YaRN for sequences that need it, at some cost in quality: for 131072 tokens "
        "that is yarn:4:32768, which reaches 131072");
  CHECK(scaling_advice(with_positions(40960), 262145) ==
        "no rope scaling that is known to work reaches that far (YaRN 8 gives 262144 tokens)");
}
