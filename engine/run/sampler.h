// From logits to the next token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/types.h"

namespace cpuinfer::run {

/// How to choose. Defaults: greedy, nothing else.
struct SamplingParams {
  float temperature = 0;         ///< 0: greedy (the largest logit; ties: the lower id)
  int top_k = 0;                 ///< keep the k most probable; 0: all
  float top_p = 1;               ///< keep the smallest set with at least this probability
  float min_p = 0;               ///< keep those with at least min_p times the largest probability
  float presence_penalty = 0;    ///< subtracted once from the logit of every token already generated   (OpenAI)
  float frequency_penalty = 0;   ///< subtracted for each time it was generated                          (OpenAI)
  float repetition_penalty = 1;  ///< divides positive and multiplies negative logits of every token in prompt and
                                 ///< answer                                                  (Keskar et al. 2019, CTRL)
  uint64_t seed = 0;

  /// kUsage with the name, the value and the range.
  Result<void> check() const;
};

struct TokenLogprob {
  TokenId token = 0;
  float logprob = 0;  ///< natural logarithm of the probability in the model's own distribution: before penalties,
                      ///< temperature and filters
};

struct Sample {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  ///< the most probable tokens, best first, as many as were asked for
};

/// Holds scratch memory for one vocabulary. Not thread-safe.
class Sampler {
 public:
  explicit Sampler(int vocab);

  /// Chooses a token. Order: repetition penalty, presence and frequency penalties, temperature, top-k, top-p, min-p
  /// (as Transformers' logits processors); then the token where the cumulative probability, most probable first,
  /// passes uniform(seed, position).
  /// logits: [vocab]. prompt, answer: tokens so far. position: of the token that is chosen.
  /// Errors: kBadInput if a logit is NaN or the largest is infinite: the weights are broken.
  Result<Sample> sample(std::span<const float> logits, std::span<const TokenId> prompt, std::span<const TokenId> answer,
                        int64_t position, const SamplingParams& params, int top_logprobs);

 private:
  struct Candidate {
    float logit;
    TokenId token;
  };
  std::vector<float> logits_;           // [vocab] after penalties
  std::vector<int32_t> answer_counts_;  // [vocab], zero between calls
  std::vector<Candidate> candidates_;   // [vocab]
  std::vector<double> probabilities_;
};

/// Natural logarithm of softmax(logits)[token], in double. NaN if any logit is.
double log_probability(std::span<const float> logits, TokenId token);

}  // namespace cpuinfer::run
