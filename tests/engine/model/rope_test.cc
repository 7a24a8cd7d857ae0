// Frequencies and cos/sin rows against tables that Transformers wrote (tests/make_rope_goldens.py).
#include "engine/model/rope.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "base/json.h"
#include "engine/model/config.h"

namespace cpuinfer::model {
namespace {

Json read_goldens() {
  std::ifstream file(CPUINFER_SOURCE_DIR "/tests/data/rope_goldens.json");
  std::stringstream text;
  text << file.rdbuf();
  auto json = parse_json(text.str(), "rope_goldens.json");
  REQUIRE(json.has_value());
  return *json;
}

float as_float(const Json& value) { return static_cast<float>(value.as_double()); }

// Units in the last place between two positive floats.
int64_t ulps(float a, float b) {
  return std::abs(int64_t{std::bit_cast<int32_t>(a)} - int64_t{std::bit_cast<int32_t>(b)});
}

TEST_CASE("frequencies and rows equal Transformers'") {
  const Json goldens = read_goldens();
  int64_t frequencies_count = 0, differing = 0, worst = 0, rows_compared = 0;
  double worst_row = 0;
  REQUIRE(goldens.find("cases")->as_array().size() >= 25);
  for (const Json& golden : goldens.find("cases")->as_array()) {
    CAPTURE(golden.find("name")->as_string());
    const auto config = parse_model_config(*golden.find("config"));
    REQUIRE_MESSAGE(config.has_value(), config.error().message);
    const RopeFrequencies ours = rope_frequencies(config->rope, config->head_dim, config->max_positions,
                                                  golden.find("sequence_length")->as_int());
    CHECK(ours.attention_scaling == as_float(*golden.find("attention_scaling")));

    const auto& theirs = golden.find("inv_freq")->as_array();
    REQUIRE(ours.inv_freq.size() == theirs.size());
    std::vector<int64_t> distance;
    for (size_t i = 0; i < theirs.size(); ++i) {
      distance.push_back(ulps(ours.inv_freq[i], as_float(theirs[i])));
      worst = std::max(worst, distance.back());
      ++frequencies_count;
      if (distance.back() > 0) ++differing;
    }

    std::vector<int64_t> positions;
    for (const Json& position : golden.find("positions")->as_array()) positions.push_back(position.as_int());
    std::vector<float> cos(positions.size() * theirs.size()), sin(cos.size());
    rope_rows(ours, positions, cos.data(), sin.data());
    const auto& pairs = golden.find("pairs")->as_array();
    for (size_t row = 0; row < positions.size(); ++row) {
      for (size_t j = 0; j < pairs.size(); ++j) {
        const size_t pair = static_cast<size_t>(pairs[j].as_int());
        const double angle = static_cast<double>(positions[row]) * static_cast<double>(ours.inv_freq[pair]);
        // torch's cos errs by less than 1 ulp (6e-8 at 1). A frequency that differs turns the angle in proportion,
        // and the angle's own rounding may then fall the other way.
        const double tolerance =
            (1.3e-7 + static_cast<double>(distance[pair] + (distance[pair] > 0)) * angle * 1.2e-7) *
            std::max(1.0, static_cast<double>(ours.attention_scaling));
        const size_t at = row * theirs.size() + pair;
        CAPTURE(positions[row]);
        CAPTURE(pair);
        const double cos_error =
            std::abs(static_cast<double>(cos[at]) - golden.find("cos")->as_array()[row].as_array()[j].as_double());
        const double sin_error =
            std::abs(static_cast<double>(sin[at]) - golden.find("sin")->as_array()[row].as_array()[j].as_double());
        CHECK(cos_error <= tolerance);
        CHECK(sin_error <= tolerance);
        if (distance[pair] == 0) worst_row = std::max({worst_row, cos_error, sin_error});
        ++rows_compared;
      }
    }
  }
  MESSAGE(frequencies_count << " frequencies: " << differing << " differ from torch, by at most " << worst << " ulp; "
                            << rows_compared << " cos/sin pairs, error at equal frequencies at most " << worst_row);
  CHECK(worst <= 2);  // torch's power errs by 1 ulp now and then, and the reciprocal may double that
  // Correctly rounded powers hardly ever differ from torch's; many differences would be another formula.
  CHECK(differing * 20 <= frequencies_count);
}

TEST_CASE("dynamic stays as it is up to max_positions and stretches beyond") {
  RopeConfig config;
  config.type = RopeType::kDynamic;
  config.factor = 2;
  config.theta = 1e6;
  const auto plain = rope_frequencies(config, 64, 1000, 0).inv_freq;
  CHECK(plain == rope_frequencies(config, 64, 1000, 1000).inv_freq);
  RopeConfig unscaled;
  unscaled.theta = 1e6;
  CHECK(plain == rope_frequencies(unscaled, 64, 1000, 0).inv_freq);
  const auto stretched = rope_frequencies(config, 64, 1000, 4000).inv_freq;
  CHECK(stretched[0] == 1.0f);
  for (size_t i = 1; i < plain.size(); ++i) CHECK(stretched[i] < plain[i]);
  CHECK(rope_frequencies(config, 64, 1000, 5000).inv_freq.back() < stretched.back());
}

TEST_CASE("rows: position 0 is the attention factor and 0") {
  RopeFrequencies frequencies{{1.0f, 0.5f}, 1.25f};
  const int64_t positions[] = {0, 2};
  float cos[4], sin[4];
  rope_rows(frequencies, positions, cos, sin);
  CHECK(cos[0] == 1.25f);
  CHECK(cos[1] == 1.25f);
  CHECK(sin[0] == 0.0f);
  CHECK(sin[1] == 0.0f);
  CHECK(cos[2] == static_cast<float>(std::cos(2.0)) * 1.25f);
  CHECK(sin[3] == static_cast<float>(std::sin(1.0)) * 1.25f);
}

TEST_CASE("describe") {
  RopeConfig config;
  config.theta = 1e6;
  CHECK(describe(config) == "default, theta 1000000");
  config.factor = 2.5;
  config.type = RopeType::kLinear;
  CHECK(describe(config) == "linear, factor 2.5, theta 1000000");
  config.type = RopeType::kDynamic;
  CHECK(describe(config) == "dynamic, factor 2.5, theta 1000000");
  config.type = RopeType::kYarn;
  config.factor = 4;
  config.original_max_positions = 32768;
  CHECK(describe(config) == "yarn, factor 4, theta 1000000, original 32768, attention factor 1.1386");
  config.beta_fast = 16;
  config.truncate = false;
  config.attention_factor = 1;
  CHECK(describe(config) ==
        "yarn, factor 4, theta 1000000, original 32768, attention factor 1, beta 16 to 1, not truncated");
}

}  // namespace
}  // namespace cpuinfer::model
