// One answer on its way to the user: generation with progress, text on stdout as it comes, thoughts dim.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "engine/run/generation.h"
#include "tools/progress.h"

namespace cpuinfer::tools {

/// Thoughts for people: what stands between <think> and </think> is dim where colours are on, and an empty thought at
/// the beginning of an answer (Qwen3's sign for "no thinking") is left out. Text may come in any pieces.
class ThoughtStyle {
 public:
  explicit ThoughtStyle(bool color) : color_(color) {}
  /// What to print for `text`. Held back: a tag that is not complete yet, a thought that may stay empty.
  std::string push(std::string_view text);
  /// What was held back, and the end of dimness.
  std::string finish();

 private:
  enum class State { kBegin, kText, kOpened, kThought, kClosedEmpty };
  bool step(std::string& out);

  bool color_;
  State state_ = State::kBegin;
  std::string held_;  // not decided yet; in kOpened the white space after the tag
};

/// How an answer is shown.
enum class AnswerForm {
  kText,  ///< the text as it is, and a newline if it does not end with one
  kChat,  ///< the same in ThoughtStyle
  kJson,  ///< an object per token, then one with the statistics
};

/// Generates one answer and shows it on stdout as it comes, with progress on stderr. With `logprobs` (and not kJson) a
/// table of log-probabilities follows on stderr. An interruption by the user is no error (FinishReason::kInterrupted);
/// a stdout that cannot be written is.
Result<run::GenerationResult> show_answer(run::Engine& engine, const checkpoint::Tokenizer& tokenizer,
                                          run::Sequence& sequence, const run::GenerationRequest& request,
                                          AnswerForm form, bool logprobs, Console& console);

}  // namespace cpuinfer::tools
