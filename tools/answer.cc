#include "tools/answer.h"

#include <array>
#include <optional>
#include <vector>

#include "base/format.h"
#include "base/json.h"
#include "tools/output.h"
#include "tools/session.h"
#include "tools/signals.h"

namespace cpuinfer::tools {
namespace {

constexpr std::string_view kOpenTag = "<think>", kCloseTag = "</think>";
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
  json.set("answer_tokens", static_cast<int64_t>(result.answer.size()));
  json.set("decoded_tokens", result.decoded_tokens);
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
    std::string line = format("{:>8} {:<16} {:>9.4f}", sample.chosen.token, shown_token(tokenizer, sample.chosen.token), sample.chosen.logprob);
    for (const run::TokenLogprob& other : sample.top) line += format("   {} {:.4f}", shown_token(tokenizer, other.token), other.logprob);
    console.line(line);
    sum += static_cast<double>(sample.chosen.logprob);
  }
  console.line(format("log-probability of the answer: {:.4f} ({} tokens)", sum, samples.size()));
}

}  // namespace

std::string ThoughtStyle::push(std::string_view text) {
  if (!enabled_) return std::string(text);
  held_ += text;
  std::string out;
  for (;;) {
    const std::string_view tag = thinking_ ? kCloseTag : kOpenTag;
    const size_t at = held_.find(tag);
    if (at == std::string::npos) {
      const size_t keep = partial_tag(held_, tag);
      out += held_.substr(0, held_.size() - keep);
      held_.erase(0, held_.size() - keep);
      return out;
    }
    const size_t end = at + tag.size();
    out += thinking_ ? held_.substr(0, end) + std::string(kPlain) : held_.substr(0, at) + std::string(kDim) + std::string(tag);
    held_.erase(0, end);
    thinking_ = !thinking_;
  }
}

std::string ThoughtStyle::finish() {
  std::string out = std::exchange(held_, {});
  if (std::exchange(thinking_, false)) out += kPlain;
  return out;
}

Result<run::GenerationResult> show_answer(run::Engine& engine, const checkpoint::Tokenizer& tokenizer,
                                          run::Sequence& sequence, const run::GenerationRequest& request,
                                          AnswerForm form, bool logprobs, Console& console) {
  std::optional<Progress> progress(std::in_place, console, "prefill", ProgressUnit::kTokens);
  ThoughtStyle style(form == AnswerForm::kText && console.color_stdout());
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
  events.prefill = [&](int64_t done, int64_t total) { progress->update(done, total); };
  events.token = [&](const run::Sample& sample, std::string_view text) {
    progress.reset();  // clears the bar before the first word
    print(form == AnswerForm::kJson ? sample_line(tokenizer, sample) : style.push(text));
    if (logprobs && form == AnswerForm::kText) samples.push_back(sample);
  };
  Result<run::GenerationResult> result = run::generate(engine, tokenizer, sequence, request, events);
  progress.reset();

  if (form == AnswerForm::kText) {
    // Text that generate() still held when it was interrupted belongs to the answer too.
    print(style.finish());
    if (last != '\n') print("\n");
  } else if (result) {
    print(result_line(engine, *result, request.sampling.seed));
  }
  if (!written && written.error().code != ErrorCode::kInterrupted) return std::unexpected(written.error());
  TRY(result);
  if (logprobs && form == AnswerForm::kText) print_logprobs(tokenizer, samples, console);
  return result;
}

}  // namespace cpuinfer::tools
