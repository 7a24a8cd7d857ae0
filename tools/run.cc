// No command: one answer to one prompt. Without a prompt and with a terminal it becomes a chat (chat.cc).
#include <unistd.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "base/format.h"
#include "engine/checkpoint/chat_template.h"
#include "tools/answer.h"
#include "tools/chat.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/profile_report.h"
#include "tools/session.h"
#include "tools/signals.h"

namespace cpuinfer::tools {
namespace {

// The text to answer, from wherever it comes.
Result<std::string> prompt_text(const RunOptions& options) {
  if (options.prompt) return *options.prompt;
  TRY_ASSIGN(std::string text, read_text(options.prompt_file.value_or("-")));
  // Editors and echo end a file with a newline that nobody means as part of the question. A text to be continued is
  // taken as it is.
  if (!options.raw && text.ends_with('\n')) text.pop_back();
  return text;
}

// What was said before, by the file of --session, and the text as the next question.
Result<std::vector<TokenId>> chat_tokens(const Conversation& before, const std::string& text,
                                         const checkpoint::Tokenizer& tokenizer) {
  std::vector<checkpoint::ChatMessage> messages;
  if (!before.system.empty()) messages.push_back({"system", before.system});
  messages.insert(messages.end(), before.messages.begin(), before.messages.end());
  messages.push_back({"user", text});
  TRY_ASSIGN(const auto pieces, checkpoint::render_chatml(messages, {.enable_thinking = before.think}));
  return tokenizer.encode(pieces);
}

// The conversation that the question belongs to: a new one, or that of --session. What the user gives now counts.
Result<Conversation> conversation_before(const RunOptions& options, const run::Engine& engine) {
  Conversation before;
  before.model = engine.model_name();
  std::error_code ignored;
  if (options.session_file && std::filesystem::exists(*options.session_file, ignored)) {
    TRY_ASSIGN(before, read_conversation(*options.session_file));
  }
  if (options.system) before.system = *options.system;
  if (options.think) before.think = *options.think;
  return before;
}

// Before anything is read. This command could also keep a part of the context on disk.
Result<void> check_plan(const run::Engine& engine, const RunOptions& options) {
  const load::MemoryPlan& plan = engine.plan();
  if (plan.largest_context == 0 || options.model.engine.kv_on_disk) return plan.check();
  return plan.check(plan.advice() + "; so would --kv-tier disk, with --kv-store on a fast disk");
}

}  // namespace

Result<int> run_command(const RunOptions& options) {
  Console console(options.console);
  const bool answer_one = options.prompt || options.prompt_file || ::isatty(STDIN_FILENO) != 1;
  // The engine first: of another kind of model the architecture is to be named, not its tokenizer.
  TRY_ASSIGN(const std::unique_ptr<run::Engine> engine, prepare_engine(options.model));
  TRY(check_plan(*engine, options));
  const std::filesystem::path& directory = engine->checkpoint().directory();
  TRY_ASSIGN(const checkpoint::Tokenizer tokenizer, checkpoint::Tokenizer::open(directory));
  const bool chatml = has_chatml(tokenizer);
  const bool chat = chatml && !options.raw;
  if (!chatml && tokenizer.chat_template() && !options.raw) {
    return fail(ErrorCode::kUnsupported,
                format("{}: the chat template is not ChatML (no <|im_start|>, <|im_end|> tokens); "
                       "--raw continues a text without it",
                       directory.string()));
  }
  if (options.session_file && !chat) {
    return fail(ErrorCode::kUsage,
                "--session keeps conversations: it needs a model with a chat template, and no --raw");
  }
  if (!answer_one && (!chat || options.json)) {
    return fail(ErrorCode::kUsage,
                options.json || options.raw
                    ? "--json and --raw need a prompt: give --prompt, --prompt-file, or text on stdin"
                    : "this model has no chat template, it only continues texts: give --prompt, "
                      "--prompt-file, or text on stdin");
  }
  const bool profile = options.profile && !options.console.quiet;
  const model::GenerationDefaults& defaults = engine->generation_defaults();
  run::GenerationRequest request;
  TRY_ASSIGN(request.sampling, choose_sampling(options.sampling, defaults));
  request.max_tokens = options.max_tokens != 0 ? options.max_tokens : defaults.max_new_tokens.value_or(0);
  request.stop_tokens = stop_tokens(*engine, tokenizer, chat);
  request.stop_strings = options.stop_strings;
  request.top_logprobs = options.logprobs.value_or(0);

  std::vector<std::string> facts = {describe(request.sampling)};
  if (!chatml) facts.push_back("prompt    continued as it is: this model has no chat template");
  if (!answer_one) {
    TRY(load_engine(*engine, facts, console));
    TRY_ASSIGN(const int code, chat_session(*engine, tokenizer, std::move(request), options, console));
    report_placement(*engine, console, false);
    if (profile && code == kExitOk) TRY(print_profile(*engine, console));
    return code;
  }

  TRY_ASSIGN(const std::string text, prompt_text(options));
  TRY(check_text_length(text, tokenizer, engine->context_tokens()));
  TRY_ASSIGN(Conversation conversation, conversation_before(options, *engine));
  if (chat) {
    TRY_ASSIGN(request.prompt, chat_tokens(conversation, text, tokenizer));
  } else {
    request.prompt = tokenizer.encode(text);
  }
  TRY(check_cancel());
  TRY_ASSIGN(const int64_t max_tokens, run::plan_generation(*engine, request));
  TRY(load_engine(*engine, facts, console));
  TRY_ASSIGN(run::Sequence sequence, engine->start_sequence(static_cast<int64_t>(request.prompt.size()) + max_tokens));
  report_rope(*engine, sequence, "prompt + answer", console);
  if (!conversation.tokens.empty()) TRY(restore_sequence(*engine, sequence, conversation, console));
  const AnswerForm form = options.json ? AnswerForm::kJson : chat ? AnswerForm::kChat : AnswerForm::kText;
  TRY_ASSIGN(const run::GenerationResult result,
             show_answer(*engine, tokenizer, sequence, request, form, options.logprobs.has_value(), console));
  console.note(statistics(*engine, result));
  report_placement(*engine, console, false);
  if (options.session_file && !result.text.empty()) {
    conversation.messages.push_back({"user", text});
    conversation.messages.push_back({"assistant", result.text});
    TRY(save_conversation(*engine, sequence, std::move(conversation), *options.session_file, console));
  }
  if (result.finish_reason == run::FinishReason::kInterrupted) return interrupted_code(*engine, result);
  if (profile) TRY(print_profile(*engine, console));
  return kExitOk;
}

}  // namespace cpuinfer::tools
