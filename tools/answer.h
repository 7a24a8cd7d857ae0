// One answer on its way to the user: generation with progress, text on stdout as it comes, thoughts dim.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "engine/run/generation.h"
#include "tools/progress.h"

namespace cpuinfer::tools {

/// Makes what stands between <think> and </think> dim on a terminal; text may come in any pieces.
class ThoughtStyle {
 public:
  explicit ThoughtStyle(bool enabled) : enabled_(enabled) {}
  /// What to print for `text`: a tag that is not complete yet is held back.
  std::string push(std::string_view text);
  /// What was held back, and the end of dimness.
  std::string finish();

 private:
  bool enabled_, thinking_ = false;
  std::string held_;
};

/// How an answer is shown.
enum class AnswerForm { kText, kJson };

/// Generates one answer and shows it: kText: the text, ended by a newline; kJson: an object per token and one with
/// the statistics. With request.top_logprobs >= 0 and kText, a table of log-probabilities follows on stderr if
/// `logprobs` is set. An interruption by the user is no error (FinishReason::kInterrupted); a stdout that cannot be
/// written is.
Result<run::GenerationResult> show_answer(run::Engine& engine, const checkpoint::Tokenizer& tokenizer,
                                          run::Sequence& sequence, const run::GenerationRequest& request,
                                          AnswerForm form, bool logprobs, Console& console);

}  // namespace cpuinfer::tools
