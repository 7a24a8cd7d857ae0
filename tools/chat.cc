#include "tools/chat.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/format.h"
#include "base/log.h"
#include "engine/checkpoint/chat_template.h"
#include "tools/answer.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/session.h"
#include "tools/signals.h"

namespace cpuinfer::tools {
namespace {

constexpr const char* kHelp = R"(/clear           forget the conversation
/set think       let the model think before it answers
/set nothink     answer at once
/set system TEXT system message of the conversation (empty: none)
/tokens          how much of the context is used
/save FILE       keep the conversation in a file
/load FILE       go on with the conversation of a file
/bye             leave (so does Ctrl-D)
/?               this list
"""              begins and ends a text of several lines
Ctrl-C           stops the answer)";

enum class LineEnd { kLine, kEnd, kInterrupted, kFailed };

/// Lines from stdin; unlike streams it notices signals.
class LineReader {
 public:
  LineEnd read(std::string& line) {
    for (;;) {
      if (const size_t newline = buffer_.find('\n'); newline != std::string::npos) {
        line = buffer_.substr(0, newline);
        buffer_.erase(0, newline + 1);
        return LineEnd::kLine;
      }
      if (!wait_readable(STDIN_FILENO)) return LineEnd::kInterrupted;
      char piece[4096];
      const ssize_t got = ::read(STDIN_FILENO, piece, sizeof(piece));
      if (got > 0) {
        buffer_.append(piece, static_cast<size_t>(got));
      } else if (got == 0) {
        // Ctrl-D after some text hands the text over; on an empty line it is the end.
        if (buffer_.empty()) return LineEnd::kEnd;
        line = std::exchange(buffer_, {});
        return LineEnd::kLine;
      } else if (errno != EINTR) {
        return LineEnd::kFailed;
      }
    }
  }
  /// What was typed before an interruption counts no more.
  void discard() { buffer_.clear(); }

 private:
  std::string buffer_;
};

class Chat {
 public:
  Chat(run::Engine& engine, const checkpoint::Tokenizer& tokenizer, run::Sequence sequence,
       run::GenerationRequest request, const RunOptions& options, Console& console)
      : engine_(engine),
        tokenizer_(tokenizer),
        sequence_(std::move(sequence)),
        request_(std::move(request)),
        system_(options.system.value_or("")),
        think_(options.think.value_or(true)),
        logprobs_(options.logprobs.has_value()),
        system_given_(options.system.has_value()),
        think_given_(options.think.has_value()),
        session_file_(options.session_file.value_or("")),
        console_(console) {}

  Result<int> run() {
    std::error_code ignored;
    if (!session_file_.empty() && std::filesystem::exists(session_file_, ignored)) {
      const std::string system = system_;
      const bool think = think_;
      TRY(load(session_file_));
      // What the user gives now counts.
      if (system_given_) system_ = system;
      if (think_given_) think_ = think;
    }
    console_.note("/? lists the commands, Ctrl-D leaves");
    int interruptions = 0;  // in a row at the prompt
    for (;;) {
      console_.put(multi_line_ ? "... " : ">>> ");
      std::string line;
      switch (reader_.read(line)) {
        case LineEnd::kLine: break;
        case LineEnd::kEnd: console_.put("\n"); return kExitOk;
        case LineEnd::kFailed: return fail(ErrorCode::kRuntime, "cannot read from the terminal");
        case LineEnd::kInterrupted:
          console_.put("\n");
          if (pending_signal() != SIGINT || ++interruptions > 1) return kExitSignalBase + pending_signal();
          clear_cancel();
          reader_.discard();
          multi_line_.reset();
          console_.note("Ctrl-C again, Ctrl-D or /bye leaves");
          continue;
      }
      interruptions = 0;
      const bool one_line = !multi_line_ && !line.starts_with(kQuotes);
      const std::optional<std::string> text = complete(line);
      if (!text || text->find_first_not_of(" \t\r\n") == std::string::npos) continue;
      if (one_line && text->starts_with('/')) {
        if (!command(*text)) return kExitOk;
        if (cancel_flag() && pending_signal() != SIGINT) return kExitSignalBase + pending_signal();
        clear_cancel();
        continue;
      }
      TRY_ASSIGN(const int code, answer(*text));
      if (code != kExitOk) return code;
    }
  }

 private:
  static constexpr std::string_view kQuotes = "\"\"\"";

  // The text of a turn once it is complete: a line, or all lines between """ and """.
  std::optional<std::string> complete(const std::string& line) {
    std::string rest = line;
    if (!multi_line_) {
      if (!rest.starts_with(kQuotes)) return rest;
      rest.erase(0, kQuotes.size());
      multi_line_.emplace();
    }
    const size_t end = rest.find(kQuotes);
    if (end == std::string::npos) {
      *multi_line_ += rest + "\n";
      return std::nullopt;
    }
    std::string text = *multi_line_ + rest.substr(0, end);
    multi_line_.reset();
    return text;
  }

  // Carries out a "/" command; false means leave.
  bool command(const std::string& text) {
    if (text == "/bye" || text == "/exit" || text == "/quit") return false;
    if (text == "/?" || text == "/help") {
      console_.put(format("{}\n", kHelp));
    } else if (text == "/clear") {
      history_.clear();
      sequence_.truncate(0);
      console_.note("the conversation is forgotten");
    } else if (text == "/tokens") {
      console_.put(format("{} of {} tokens of the context are used\n", sequence_.length(), engine_.context_tokens()));
    } else if (text == "/set think" || text == "/set nothink") {
      think_ = text == "/set think";
      console_.note(think_ ? "the model may think before it answers" : "the model answers at once");
    } else if (text == "/set system" || text.starts_with("/set system ")) {
      system_ = text.substr(std::min(text.size(), std::string_view("/set system ").size()));
      console_.note(system_.empty() ? "no system message" : "the system message is set");
    } else if (text.starts_with("/save ") || text.starts_with("/load ")) {
      const std::string path = text.substr(std::string_view("/save ").size());
      const Result<void> done = text.starts_with("/save ") ? save(path) : load(path);
      if (!done) log_error("{}", done.error().message);
      // The file of --session must not be overwritten with another conversation.
      if (done && text.starts_with("/load ") && !session_file_.empty() && session_file_ != path) {
        session_file_ = path;
        console_.note(format("the conversation is kept in {} from now on", path));
      }
    } else if (text == "/save" || text == "/load") {
      log_error("{} needs the name of a file", text);
    } else {
      log_error("unknown command '{}'; /? lists the commands", text);
    }
    return true;
  }

  Result<void> save(const std::string& path) {
    return save_conversation(engine_, sequence_, {engine_.model_name(), system_, think_, history_, {}}, path, console_);
  }

  Result<void> load(const std::string& path) {
    TRY_ASSIGN(const Conversation conversation, read_conversation(path));
    history_ = conversation.messages;
    system_ = conversation.system;
    think_ = conversation.think;
    return restore_sequence(engine_, sequence_, conversation, console_);
  }

  // Answers one turn. Exit code other than 0: leave. An error of this turn alone is printed and the turn forgotten.
  Result<int> answer(const std::string& text) {
    std::vector<checkpoint::ChatMessage> messages;
    if (!system_.empty()) messages.push_back({"system", system_});
    messages.insert(messages.end(), history_.begin(), history_.end());
    messages.push_back({"user", text});
    TRY_ASSIGN(const auto pieces, checkpoint::render_chatml(messages, {.enable_thinking = think_}));
    request_.prompt = tokenizer_.encode(pieces);
    if (const auto planned = run::plan_generation(engine_, request_); !planned) {
      log_error("{}; or /clear", planned.error().message);
      return kExitOk;
    }
    const Result<run::GenerationResult> answered =
        show_answer(engine_, tokenizer_, sequence_, request_, AnswerForm::kChat, logprobs_, console_);
    if (!answered && (answered.error().code == ErrorCode::kRuntime || answered.error().code == ErrorCode::kBadInput)) {
      // A disk that failed or was wrong in the middle: this turn is forgotten, the next one may work.
      log_error("{}", answered.error().message);
      return kExitOk;
    }
    TRY_ASSIGN(const run::GenerationResult result, answered);
    console_.note(statistics(engine_, result));
    int code = kExitOk;
    if (result.finish_reason == run::FinishReason::kInterrupted) {
      if (pending_signal() != SIGINT) code = interrupted_code(engine_, result);
      clear_cancel();
    }
    // What was shown is part of the conversation, also if it was stopped; a turn without any answer is not.
    if (result.finish_reason != run::FinishReason::kInterrupted || !result.text.empty()) {
      history_.push_back({"user", text});
      history_.push_back({"assistant", result.text});
      // A full disk does not end the conversation.
      if (!session_file_.empty())
        if (const Result<void> saved = save(session_file_); !saved) log_error("{}", saved.error().message);
    }
    return code;
  }

  run::Engine& engine_;
  const checkpoint::Tokenizer& tokenizer_;
  run::Sequence sequence_;
  run::GenerationRequest request_;
  std::vector<checkpoint::ChatMessage> history_;
  std::string system_;
  bool think_, logprobs_;
  bool system_given_, think_given_;  // on the command line
  std::string session_file_;         // empty: none
  Console& console_;
  LineReader reader_;
  std::optional<std::string> multi_line_;
};

}  // namespace

Result<void> restore_sequence(run::Engine& engine, run::Sequence& sequence, const Conversation& conversation,
                              Console& console) {
  const std::vector<TokenId>& tokens = conversation.tokens;
  if (conversation.model != engine.model_name())
    log_warn("the conversation was held with '{}', this model is '{}'", conversation.model, engine.model_name());
  const bool usable =
      static_cast<int64_t>(tokens.size()) <= engine.context_tokens() &&
      std::all_of(tokens.begin(), tokens.end(), [&](TokenId token) { return token < engine.config().vocab; });
  run::ReusedTokens reused;
  if (usable) {
    Progress progress(console, "restoring", ProgressUnit::kTokens);
    TRY_ASSIGN(reused, engine.reuse(sequence, tokens,
                                    {.progress = [&](int64_t done, int64_t all) { progress.update(done, all); },
                                     .cancel = &cancel_flag()}));
  }
  console.line(format(
      "restored  {} messages, {} of {} tokens{}", conversation.messages.size(), reused.total(), tokens.size(),
      reused.total() < static_cast<int64_t>(tokens.size()) ? "; the rest is computed with the next question" : ""));
  return {};
}

Result<void> save_conversation(run::Engine& engine, run::Sequence& sequence, Conversation conversation,
                               const std::string& path, Console& console) {
  engine.save(sequence);
  conversation.tokens.assign(sequence.tokens().begin(), sequence.tokens().end());
  TRY(write_conversation(path, conversation));
  console.note(format("saved     {} messages to {}{}", conversation.messages.size(), path,
                      engine.kv_store() != nullptr ? ", their keys and values to the KV store"
                                                   : "; without --kv-store their tokens are computed again"));
  return {};
}

Result<int> chat_session(run::Engine& engine, const checkpoint::Tokenizer& tokenizer, run::GenerationRequest request,
                         const RunOptions& options, Console& console) {
  TRY_ASSIGN(run::Sequence sequence, engine.start_sequence(engine.context_tokens()));
  report_rope(engine, sequence, "all turns, the whole context", console);
  return Chat(engine, tokenizer, std::move(sequence), std::move(request), options, console).run();
}

}  // namespace cpuinfer::tools
