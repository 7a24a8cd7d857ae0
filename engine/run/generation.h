// One answer: prefill of a prompt, then tokens until something says stop.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "engine/checkpoint/tokenizer.h"
#include "engine/run/engine.h"
#include "engine/run/sampler.h"

namespace cpuinfer::run {

struct GenerationRequest {
  std::vector<TokenId> prompt;  ///< at least one token
  SamplingParams sampling;
  int64_t max_tokens = 0;                 ///< 0: as many as the context holds
  std::vector<TokenId> stop_tokens;       ///< end of sequence: not part of the text
  std::vector<std::string> stop_strings;  ///< not part of the text, nor what follows
  int top_logprobs = 0;                   ///< alternatives per token in events
};

/// All are optional. Called on the thread that generates, in order.
struct GenerationEvents {
  /// Prompt tokens read from the KV store, of those that it has.
  std::function<void(int64_t done, int64_t total)> restore;
  /// Prompt tokens computed, of those that are not reused.
  std::function<void(int64_t done, int64_t total)> prefill;
  /// For each token. `text` is what may be shown now: whole UTF-8 characters that are not part of a stop string;
  /// often it lags behind the token.
  std::function<void(const Sample& sample, std::string_view text)> token;
  /// Text that was held back when the answer was interrupted, if any.
  std::function<void(std::string_view text)> rest;
  /// When it becomes true, generation ends after the running step with FinishReason::kInterrupted.
  const std::atomic<bool>* cancel = nullptr;
};

enum class FinishReason { kStop, kLength, kInterrupted };
const char* finish_reason_name(FinishReason reason);  // "stop" | "length" | "interrupted"

struct GenerationResult {
  std::vector<TokenId> answer;  ///< tokens chosen, the stop token included
  std::string text;
  FinishReason finish_reason = FinishReason::kStop;
  int64_t prompt_tokens = 0;
  ReusedTokens reused;           ///< of the prompt, not computed
  int64_t prefilled_tokens = 0;  ///< of the prompt, in the sequence at the end: all but for an interruption
  int64_t decoded_tokens = 0;    ///< decode steps: answer tokens after the first
  int64_t stored_tokens = 0;     ///< of the prompt, that the KV store has, if it was interrupted before its end
  double restore_seconds = 0;    ///< to find and read what was reused
  double prefill_seconds = 0;    ///< to compute the rest
  double decode_seconds = 0;
};

/// Checks a request against an engine. kUsage: empty prompt, prompt longer than the context (with both numbers), token
/// ids outside the vocabulary, sampling out of range. Returns the most tokens that will be generated.
Result<int64_t> plan_generation(const Engine& engine, const GenerationRequest& request);

/// Generates into `sequence`, as many tokens as it was planned for at the most. It may hold an earlier conversation:
/// tokens that it shares with the prompt, and those that the KV store has, are not computed again, the rest of it is
/// forgotten. Afterwards it holds prompt and answer but for the last token. The result depends on the request alone:
/// not on what was reused, nor on chunks or threads (docs/numerics.md). Errors: of plan_generation, kUsage (a prompt
/// that fills the sequence), of append, kBadInput for NaN logits. An interruption is no error.
Result<GenerationResult> generate(Engine& engine, const checkpoint::Tokenizer& tokenizer, Sequence& sequence,
                                  const GenerationRequest& request, const GenerationEvents& events = {});

}  // namespace cpuinfer::run
