#include "tools/answer.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "base/format.h"
#include "base/json.h"
#include "tools/output.h"
#include "tools/session.h"
#include "tools/signals.h"

namespace cpuinfer::tools {
namespace {

constexpr std::string_view kOpenTag = "<think>", kCloseTag = "</think>", kWhiteSpace = " \t\r\n";
constexpr std::string_view kDim = "\033[2m", kPlain = "\033[0m";

// The length of the longest end of `text` that may be the beginning of `tag`.
size_t partial_tag(std::string_view text, std::string_view tag) {
  for (size_t length = std::min(text.size(), tag.size() - 1); length > 0; --length)
    if (text.ends_with(tag.substr(0, length))) return length;
  return 0;
}

Json token_json(const checkpoint::Tokenizer& tokenizer, const run::TokenLogprob& token) {
  const std::string_view bytes = tokenizer.token_bytes(token.token);
  Json json;
  json.set("token", int64_t{token.token});
  json.set("text", std::string(bytes));  // U+FFFD where a token is not whole characters; hence the bytes
  Json numbers{Json::Array{}};
  for (const char c : bytes) numbers.push_back(int64_t{static_cast<unsigned char>(c)});
  json.set("bytes", std::move(numbers));
  json.set("logprob", static_cast<double>(token.logprob));
  return json;
}

std::string sample_line(const checkpoint::Tokenizer& tokenizer, const run::Sample& sample) {
  Json json = token_json(tokenizer, sample.chosen);
  if (!sample.top.empty()) {
    Json top{Json::Array{}};
    for (const run::TokenLogprob& other : sample.top) top.push_back(token_json(tokenizer, other));
    json.set("top", std::move(top));
  }
  return to_json_text(json) + "\n";
}

std::string result_line(const run::Engine& engine, const run::GenerationResult& result, uint64_t seed) {
  Json json;
  json.set("text", result.text);
  json.set("finish_reason", run::finish_reason_name(result.finish_reason));
  json.set("prompt_tokens", result.prompt_tokens);
  json.set("cached_tokens", result.reused.memory);
  json.set("stored_tokens", result.reused.store);
  json.set("answer_tokens", static_cast<int64_t>(result.answer.size()));
  json.set("decoded_tokens", result.decoded_tokens);
  json.set("load_seconds", engine.load_statistics().seconds);
  json.set("load_bytes", engine.load_statistics().bytes);
  json.set("restore_seconds", result.restore_seconds);
  json.set("prefill_seconds", result.prefill_seconds);
  json.set("decode_seconds", result.decode_seconds);
  json.set("decode_weight_bytes", engine.decode_weight_bytes());
  json.set("seed", format("{}", seed));  // as a string: JSON numbers lose 64 bits in many readers
  return to_json_text(json) + "\n";
}

// "'the'" with everything that is not printable ASCII or a letter of UTF-8 escaped.
std::string shown_token(const checkpoint::Tokenizer& tokenizer, TokenId token) {
  return to_json_text(Json(std::string(tokenizer.token_bytes(token))));
}

void print_logprobs(const checkpoint::Tokenizer& tokenizer, const std::vector<run::Sample>& samples, Console& console) {
  double sum = 0;
  for (const run::Sample& sample : samples) {
    std::string line = format("{:>8} {:<16} {:>9.4f}", sample.chosen.token, shown_token(tokenizer, sample.chosen.token),
                              sample.chosen.logprob);
    for (const run::TokenLogprob& other : sample.top)
      line += format("   {} {:.4f}", shown_token(tokenizer, other.token), other.logprob);
    console.line(line);
    sum += static_cast<double>(sample.chosen.logprob);
  }
  console.line(format("log-probability of the answer: {:.4f} ({} tokens)", sum, samples.size()));
}

}  // namespace

std::string ThoughtStyle::push(std::string_view text) {
  held_ += text;
  std::string out;
  while (step(out)) {
  }
  return out;
}

// Moves what is decided from held_ to out; false when more text is needed.
bool ThoughtStyle::step(std::string& out) {
  const auto move = [&](size_t count) {
    out += held_.substr(0, count);
    held_.erase(0, count);
  };
  const size_t space = std::min(held_.find_first_not_of(kWhiteSpace), held_.size());
  switch (state_) {
    case State::kBegin:
      if (held_.empty()) return false;
      if (held_.starts_with(kOpenTag)) {
        held_.erase(0, kOpenTag.size());
        state_ = State::kOpened;
        return true;
      }
      if (kOpenTag.starts_with(held_)) return false;
      state_ = State::kText;
      return true;
    case State::kOpened:
      if (std::string_view(held_).substr(space).starts_with(kCloseTag)) {
        held_.erase(0, space + kCloseTag.size());
        state_ = State::kClosedEmpty;
        return true;
      }
      if (kCloseTag.starts_with(std::string_view(held_).substr(space))) return false;
      if (color_) out += kDim;
      out += kOpenTag;
      state_ = State::kThought;
      return true;
    case State::kClosedEmpty:
      held_.erase(0, space);
      if (held_.empty()) return false;
      state_ = State::kText;
      return true;
    case State::kText:
    case State::kThought: {
      const std::string_view tag = state_ == State::kText ? kOpenTag : kCloseTag;
      const size_t at = held_.find(tag);
      if (at == std::string::npos) {
        move(held_.size() - partial_tag(held_, tag));
        return false;
      }
      move(at);
      if (state_ == State::kText && color_) out += kDim;
      move(tag.size());
      if (state_ == State::kThought && color_) out += kPlain;
      state_ = state_ == State::kText ? State::kThought : State::kText;
      return true;
    }
  }
  return false;
}

std::string ThoughtStyle::finish() {
  std::string out = std::exchange(held_, {});
  if (state_ == State::kOpened) out.insert(0, kOpenTag);
  if (state_ == State::kThought && color_) out += kPlain;
  state_ = State::kText;
  return out;
}

Result<run::GenerationResult> show_answer(run::Engine& engine, const checkpoint::Tokenizer& tokenizer,
                                          run::Sequence& sequence, const run::GenerationRequest& request,
                                          AnswerForm form, bool logprobs, Console& console) {
  std::optional<Progress> progress;
  const char* shown = "";  // what progress is of
  const auto update = [&](const char* label, int64_t done, int64_t total) {
    if (!progress || label != shown) progress.emplace(console, shown = label, ProgressUnit::kTokens);
    progress->update(done, total);
  };
  ThoughtStyle style(console.color_stdout());
  std::vector<run::Sample> samples;
  Result<void> written;
  char last = '\n';  // of what was printed
  const auto print = [&](const std::string& text) {
    if (!written || text.empty()) return;
    last = text.back();
    written = write_stdout(text);
    // A stdout that is full or closed ends the generation as a signal does.
    if (!written && written.error().code != ErrorCode::kInterrupted) raise_cancel(0);
  };

  run::GenerationEvents events;
  events.cancel = &cancel_flag();
  events.restore = [&](int64_t done, int64_t total) { update("restoring", done, total); };
  events.prefill = [&](int64_t done, int64_t total) { update("prefill", done, total); };
  events.token = [&](const run::Sample& sample, std::string_view text) {
    progress.reset();  // clears the bar before the first word
    print(form == AnswerForm::kJson   ? sample_line(tokenizer, sample)
          : form == AnswerForm::kChat ? style.push(text)
                                      : std::string(text));
    if (logprobs && form != AnswerForm::kJson) samples.push_back(sample);
  };
  events.rest = [&](std::string_view text) {
    if (form != AnswerForm::kJson) print(form == AnswerForm::kChat ? style.push(text) : std::string(text));
  };
  Result<run::GenerationResult> result = run::generate(engine, tokenizer, sequence, request, events);
  progress.reset();

  if (form != AnswerForm::kJson) {
    print(style.finish());
    if (last != '\n') print("\n");
  } else if (result) {
    print(result_line(engine, *result, request.sampling.seed));
  }
  if (!written && written.error().code != ErrorCode::kInterrupted) return std::unexpected(written.error());
  TRY(result);
  if (logprobs && form != AnswerForm::kJson) print_logprobs(tokenizer, samples, console);
  return result;
}

}  // namespace cpuinfer::tools
