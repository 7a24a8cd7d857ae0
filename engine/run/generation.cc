#include "engine/run/generation.h"

#include <algorithm>
#include <chrono>

#include "base/format.h"
#include "engine/run/stop_strings.h"

namespace cpuinfer::run {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kInterrupted: return "interrupted";
  }
  return "";
}

Result<int64_t> plan_generation(const Engine& engine, const GenerationRequest& request) {
  TRY(request.sampling.check());
  const int64_t prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t context = engine.context_tokens();
  if (prompt == 0) return fail(ErrorCode::kUsage, "the prompt is empty: there is nothing to continue");
  if (prompt >= context) {
    return fail(ErrorCode::kUsage,
                format("the prompt has {} tokens and the context {}: no room for an answer; shorten the "
                       "prompt or raise --ctx",
                       prompt, context));
  }
  if (request.max_tokens < 0)
    return fail(ErrorCode::kUsage,
                format("max tokens is {}; it must be 0 (as many as fit) or more", request.max_tokens));
  for (const TokenId token : request.prompt) {
    if (token < 0 || token >= engine.config().vocab) {
      return fail(ErrorCode::kUsage, format("token id {} in the prompt is outside the model's vocabulary of {}", token,
                                            engine.config().vocab));
    }
  }
  const int64_t room = context - prompt;
  return request.max_tokens == 0 ? room : std::min(request.max_tokens, room);
}

Result<GenerationResult> generate(Engine& engine, const checkpoint::Tokenizer& tokenizer, Sequence& sequence,
                                  const GenerationRequest& request, const GenerationEvents& events) {
  TRY_ASSIGN(int64_t max_tokens, plan_generation(engine, request));
  GenerationResult result;
  result.prompt_tokens = static_cast<int64_t>(request.prompt.size());
  const int64_t planned = sequence.planned_tokens();
  if (result.prompt_tokens >= planned) {
    return fail(ErrorCode::kUsage, format("the prompt has {} tokens and the sequence was started for {}: no room for "
                                          "an answer; start it for more",
                                          result.prompt_tokens, planned));
  }
  max_tokens = std::min(max_tokens, planned - result.prompt_tokens);

  Sampler sampler(engine.config().vocab);
  checkpoint::Detokenizer detokenizer(tokenizer);
  StopStrings stop_strings(request.stop_strings);
  Result<Sample> sample;
  AppendOptions append;
  append.cancel = events.cancel;
  append.logits = [&](int64_t, std::span<const std::span<const float>> logits) {
    const int64_t position = result.prompt_tokens + static_cast<int64_t>(result.answer.size());
    sample =
        sampler.sample(logits.back(), request.prompt, result.answer, position, request.sampling, request.top_logprobs);
  };

  // At the end: first the bytes of an unfinished character, then what waited for the rest of a stop string.
  const auto held_back = [&] {
    std::string text = stop_strings.push(detokenizer.finish());
    return text += stop_strings.finish();
  };
  // Returns false when the answer is complete.
  const auto take = [&]() {
    const TokenId token = sample->chosen.token;
    result.answer.push_back(token);
    std::string text;
    const bool end =
        std::find(request.stop_tokens.begin(), request.stop_tokens.end(), token) != request.stop_tokens.end();
    if (!end) text = stop_strings.push(detokenizer.push(token));
    const bool full = static_cast<int64_t>(result.answer.size()) >= max_tokens;
    const bool done = end || stop_strings.found() || full;
    if (done && !stop_strings.found()) text += held_back();
    result.text += text;
    if (events.token) events.token(*sample, text);
    if (done) result.finish_reason = end || stop_strings.found() ? FinishReason::kStop : FinishReason::kLength;
    return !done;
  };

  // At least the last prompt token is computed, for its logits.
  const std::span<const TokenId> prompt(request.prompt);
  const auto started = std::chrono::steady_clock::now();
  append.progress = events.restore;
  Result<ReusedTokens> reused = engine.reuse(sequence, prompt.first(prompt.size() - 1), append);
  result.restore_seconds = seconds_since(started);
  const auto prefill_started = std::chrono::steady_clock::now();
  Result<void> appended;
  if (reused) {
    result.reused = *reused;
    append.progress = events.prefill;
    appended = engine.append(sequence, prompt.subspan(static_cast<size_t>(reused->total())), append);
  } else {
    appended = std::unexpected(reused.error());
  }
  result.prefilled_tokens = std::min(sequence.length(), result.prompt_tokens);
  result.prefill_seconds = seconds_since(prefill_started);
  if (result.prefilled_tokens < result.prompt_tokens) result.stored_tokens = engine.stored_tokens(sequence, prompt);

  const auto decode_started = std::chrono::steady_clock::now();
  append.progress = nullptr;
  while (appended && sample && take()) {
    appended = engine.append(sequence, {&result.answer.back(), 1}, append);
    if (appended) ++result.decoded_tokens;
  }
  result.decode_seconds = seconds_since(decode_started);

  if (!appended && appended.error().code == ErrorCode::kInterrupted) {
    result.finish_reason = FinishReason::kInterrupted;
    const std::string rest = held_back();
    result.text += rest;
    if (events.rest && !rest.empty()) events.rest(rest);
    return result;
  }
  TRY(appended);
  if (!sample) return std::unexpected(sample.error());
  return result;
}

}  // namespace cpuinfer::run
