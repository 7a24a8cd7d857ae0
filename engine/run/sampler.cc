#include "engine/run/sampler.h"

#include <algorithm>
#include <cmath>

#include "base/format.h"
#include "engine/run/random.h"

namespace cpuinfer::run {
namespace {

// ln(sum exp(logit)), in index order.
double log_sum_exp(std::span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return largest + std::log(sum);
}

bool better(float logit_a, TokenId a, float logit_b, TokenId b) {
  return logit_a > logit_b || (logit_a == logit_b && a < b);
}

}  // namespace

Result<void> SamplingParams::check() const {
  const auto bad = [](const char* name, auto value, const char* range) {
    return fail(ErrorCode::kUsage, format("{} is {}; it must be {}", name, value, range));
  };
  if (!(temperature >= 0) || !std::isfinite(temperature)) return bad("temperature", temperature, "0 or more");
  if (top_k < 0) return bad("top-k", top_k, "0 (off) or more");
  if (!(top_p > 0 && top_p <= 1)) return bad("top-p", top_p, "over 0 and at most 1");
  if (!(min_p >= 0 && min_p <= 1)) return bad("min-p", min_p, "between 0 and 1");
  if (!(std::fabs(presence_penalty) <= 2)) return bad("presence-penalty", presence_penalty, "between -2 and 2");
  if (!(std::fabs(frequency_penalty) <= 2)) return bad("frequency-penalty", frequency_penalty, "between -2 and 2");
  if (!(repetition_penalty > 0) || !std::isfinite(repetition_penalty))
    return bad("repetition-penalty", repetition_penalty, "over 0");
  return {};
}

Sampler::Sampler(int vocab) : logits_(vocab), answer_counts_(vocab, 0) { candidates_.reserve(vocab); }

Result<Sample> Sampler::sample(std::span<const float> logits, std::span<const TokenId> prompt,
                               std::span<const TokenId> answer, int64_t position, const SamplingParams& params,
                               int top_logprobs) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) {
      return fail(
          ErrorCode::kBadInput,
          format("the logit of token {} at position {} is NaN: the weights of this checkpoint are broken, or its "
                 "activations overflow",
                 i, position));
    }
  }
  if (const float largest = *std::max_element(logits.begin(), logits.end()); !std::isfinite(largest)) {
    return fail(ErrorCode::kBadInput,
                format("the largest logit at position {} is {}: the weights of this checkpoint are broken, or its "
                       "activations overflow",
                       position, largest));
  }
  std::copy(logits.begin(), logits.end(), logits_.begin());

  // Penalties.
  for (const TokenId token : answer) ++answer_counts_[token];
  if (params.repetition_penalty != 1) {
    const auto penalise = [&](std::span<const TokenId> tokens) {
      for (const TokenId token : tokens) {
        float& logit = logits_[token];
        // Once per token: a logit that differs from the model's has had its turn.
        if (logit == logits[token])
          logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
      }
    };
    penalise(prompt);
    penalise(answer);
  }
  for (const TokenId token : answer) {
    const int count = answer_counts_[token];
    if (count == 0) continue;
    logits_[token] -= params.presence_penalty + params.frequency_penalty * static_cast<float>(count);
    answer_counts_[token] = 0;
  }

  const auto order = [](const Candidate& a, const Candidate& b) { return better(a.logit, a.token, b.logit, b.token); };
  candidates_.clear();
  for (size_t i = 0; i < logits_.size(); ++i) candidates_.push_back({logits_[i], static_cast<TokenId>(i)});

  Sample sample;
  if (params.temperature == 0) {
    sample.chosen.token = std::min_element(candidates_.begin(), candidates_.end(), order)->token;
  } else {
    if (params.top_k > 0 && params.top_k < static_cast<int>(candidates_.size())) {
      std::partial_sort(candidates_.begin(), candidates_.begin() + params.top_k, candidates_.end(), order);
      candidates_.resize(params.top_k);
    } else {
      std::sort(candidates_.begin(), candidates_.end(), order);
    }
    const double largest = candidates_.front().logit;
    probabilities_.clear();
    double sum = 0;
    for (const Candidate& candidate : candidates_) {
      probabilities_.push_back(std::exp((static_cast<double>(candidate.logit) - largest) / params.temperature));
      sum += probabilities_.back();
    }
    // top-p: the token that passes the threshold is kept.
    size_t kept = 0;
    double cumulative = 0;
    while (kept < probabilities_.size() && (kept == 0 || cumulative < params.top_p * sum))
      cumulative += probabilities_[kept++];
    while (kept > 1 && probabilities_[kept - 1] < params.min_p * probabilities_[0])
      cumulative -= probabilities_[--kept];
    const double target = uniform(params.seed, static_cast<uint64_t>(position)) * cumulative;
    double passed = 0;
    size_t chosen = 0;
    for (; chosen + 1 < kept; ++chosen) {
      passed += probabilities_[chosen];
      if (target < passed) break;
    }
    sample.chosen.token = candidates_[chosen].token;
  }

  const double normaliser = log_sum_exp(logits);
  sample.chosen.logprob = static_cast<float>(logits[sample.chosen.token] - normaliser);
  if (top_logprobs > 0) {
    candidates_.clear();
    for (size_t i = 0; i < logits.size(); ++i) candidates_.push_back({logits[i], static_cast<TokenId>(i)});
    const size_t count = std::min(candidates_.size(), static_cast<size_t>(top_logprobs));
    std::partial_sort(candidates_.begin(), candidates_.begin() + count, candidates_.end(), order);
    for (size_t i = 0; i < count; ++i)
      sample.top.push_back({candidates_[i].token, static_cast<float>(candidates_[i].logit - normaliser)});
  }
  return sample;
}

double log_probability(std::span<const float> logits, TokenId token) {
  for (const float logit : logits)
    if (std::isnan(logit)) return std::nan("");
  return logits[token] - log_sum_exp(logits);
}

}  // namespace cpuinfer::run
