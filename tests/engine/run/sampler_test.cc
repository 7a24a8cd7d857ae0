#include "engine/run/sampler.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <map>

#include "engine/run/random.h"

using namespace cpuinfer;
using namespace cpuinfer::run;

namespace {

TokenId pick(std::span<const float> logits, const SamplingParams& params, int64_t position = 0,
             std::span<const TokenId> prompt = {}, std::span<const TokenId> answer = {}) {
  Sampler sampler(static_cast<int>(logits.size()));
  const auto sample = sampler.sample(logits, prompt, answer, position, params, 0);
  REQUIRE(sample);
  return sample->chosen.token;
}

// Frequencies over many positions.
std::map<TokenId, double> frequencies(std::span<const float> logits, const SamplingParams& params) {
  constexpr int kDraws = 20000;
  Sampler sampler(static_cast<int>(logits.size()));
  std::map<TokenId, double> counts;
  for (int position = 0; position < kDraws; ++position)
    counts[sampler.sample(logits, {}, {}, position, params, 0)->chosen.token] += 1.0 / kDraws;
  return counts;
}

const std::vector<float> kLogits = {std::log(0.5f), std::log(0.25f), std::log(0.15f), std::log(0.1f)};

}  // namespace

TEST_CASE("philox4x32-10 gives the known answers of the Random123 distribution") {
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) ==
        std::array<uint32_t, 4>{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
  CHECK(philox4x32({0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu}, {0xffffffffu, 0xffffffffu}) ==
        std::array<uint32_t, 4>{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
  CHECK(philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}) ==
        std::array<uint32_t, 4>{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
}

TEST_CASE("greedy takes the largest logit, the lower id among equals") {
  CHECK(pick(std::vector<float>{1, 3, 2, 3}, {}) == 1);
  CHECK(pick(std::vector<float>{-INFINITY, -5, -INFINITY}, {}) == 1);
}

TEST_CASE("top-k 1 is greedy at any temperature") {
  SamplingParams params{.temperature = 5, .top_k = 1, .seed = 3};
  for (int position = 0; position < 100; ++position) CHECK(pick(kLogits, params, position) == 0);
}

TEST_CASE("sampling follows the probabilities") {
  const auto counts = frequencies(kLogits, {.temperature = 1, .seed = 11});
  // Four standard deviations of 20,000 draws are at most 0.0142.
  CHECK(counts.at(0) == doctest::Approx(0.5).epsilon(0.03));
  CHECK(std::fabs(counts.at(1) - 0.25) < 0.0142);
  CHECK(std::fabs(counts.at(2) - 0.15) < 0.0142);
  CHECK(std::fabs(counts.at(3) - 0.10) < 0.0142);
}

TEST_CASE("temperature sharpens") {
  const auto counts = frequencies(kLogits, {.temperature = 0.5f, .seed = 5});
  const double sum = 0.25 + 0.0625 + 0.0225 + 0.01;
  CHECK(std::fabs(counts.at(0) - 0.25 / sum) < 0.0142);
}

TEST_CASE("top-p keeps the token that passes the threshold, top-k and min-p cut the tail") {
  CHECK(frequencies(kLogits, {.temperature = 1, .top_p = 0.6f}).size() == 2);
  CHECK(frequencies(kLogits, {.temperature = 1, .top_p = 0.4f}).size() == 1);
  CHECK(frequencies(kLogits, {.temperature = 1, .top_k = 3}).size() == 3);
  CHECK(frequencies(kLogits, {.temperature = 1, .min_p = 0.25f}).size() == 3);
  CHECK(frequencies(kLogits, {.temperature = 1, .min_p = 1}).size() == 1);
}

TEST_CASE("the draw depends on seed and position alone") {
  const SamplingParams params{.temperature = 1, .seed = 42};
  Sampler sampler(4);
  std::vector<TokenId> forwards, backwards;
  for (int position = 0; position < 50; ++position)
    forwards.push_back(sampler.sample(kLogits, {}, {}, position, params, 0)->chosen.token);
  for (int position = 49; position >= 0; --position)
    backwards.insert(backwards.begin(), pick(kLogits, params, position));
  CHECK(forwards == backwards);
}

TEST_CASE("penalties") {
  const std::vector<float> logits = {2.0f, 1.9f, -1.0f};
  const std::vector<TokenId> zero = {0}, zeros = {0, 0, 0}, two = {2};
  CHECK(pick(logits, {.presence_penalty = 0.2f}, 0, {}, zero) == 1);
  CHECK(pick(logits, {.presence_penalty = 0.05f}, 0, {}, zeros) == 0);
  CHECK(pick(logits, {.frequency_penalty = 0.05f}, 0, {}, zeros) == 1);
  CHECK(pick(logits, {.presence_penalty = 0.2f}, 0, zero, {}) == 0);        // the prompt does not count
  CHECK(pick(logits, {.repetition_penalty = 1.5f}, 0, zero, {}) == 1);      // here it does
  CHECK(pick(logits, {.repetition_penalty = 1.04f}, 0, zeros, zero) == 0);  // once, however often it stands there: 1.92
  const std::vector<float> negative = {-3.0f, -1.0f, -1.2f};
  const std::vector<TokenId> one = {1};
  CHECK(pick(negative, {.repetition_penalty = 2}, 0, one, {}) == 2);  // negative logits are multiplied
}

TEST_CASE("log probabilities are those of the model's own distribution") {
  Sampler sampler(4);
  const auto sample = sampler.sample(kLogits, {}, {}, 0, {.temperature = 0.3f, .top_k = 1}, 3);
  REQUIRE(sample);
  CHECK(sample->chosen.logprob == doctest::Approx(std::log(0.5)));
  REQUIRE(sample->top.size() == 3);
  CHECK(sample->top[1].token == 1);
  CHECK(sample->top[1].logprob == doctest::Approx(std::log(0.25)));
  CHECK(log_probability(kLogits, 3) == doctest::Approx(std::log(0.1)));
}

TEST_CASE("NaN logits are an error that names the token") {
  const std::vector<float> logits = {0, std::nanf(""), 1};
  Sampler sampler(3);
  const auto sample = sampler.sample(logits, {}, {}, 7, {}, 0);
  REQUIRE_FALSE(sample);
  CHECK(sample.error().code == ErrorCode::kBadInput);
  CHECK(sample.error().message.starts_with("the logit of token 1 at position 7 is NaN"));
  CHECK(std::isnan(log_probability(logits, 0)));
}

TEST_CASE("infinite logits are an error unless a finite one is larger") {
  const auto message = [](std::vector<float> logits) {
    Sampler sampler(static_cast<int>(logits.size()));
    const auto sample = sampler.sample(logits, {}, {}, 3, {}, 0);
    return sample ? std::string() : sample.error().message;
  };
  CHECK(message({-INFINITY, 1}).empty());
  CHECK(message({-INFINITY, -INFINITY}).starts_with("the largest logit at position 3 is -inf: "));
  CHECK(message({0, INFINITY}).starts_with("the largest logit at position 3 is inf: "));
}

TEST_CASE("parameters out of range are named with their range") {
  const auto message = [](SamplingParams params) { return params.check() ? "" : params.check().error().message; };
  CHECK(message({.temperature = -1}) == "temperature is -1; it must be 0 or more");
  CHECK(message({.temperature = NAN}) == "temperature is nan; it must be 0 or more");
  CHECK(message({.top_k = -3}) == "top-k is -3; it must be 0 (off) or more");
  CHECK(message({.top_p = 0}) == "top-p is 0; it must be over 0 and at most 1");
  CHECK(message({.min_p = 1.5f}) == "min-p is 1.5; it must be between 0 and 1");
  CHECK(message({.presence_penalty = 3}) == "presence-penalty is 3; it must be between -2 and 2");
  CHECK(message({.frequency_penalty = -3}) == "frequency-penalty is -3; it must be between -2 and 2");
  CHECK(message({.repetition_penalty = 0}) == "repetition-penalty is 0; it must be over 0");
  CHECK(message({}) == "");
}
