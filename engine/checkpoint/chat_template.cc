// Source: chat_template in Qwen/Qwen3-* tokenizer_config.json (2025-04), the paths without tools, tool calls and
// reasoning_content. tests/engine/checkpoint/chat_template_test compares with that template run by Jinja.
#include "engine/checkpoint/chat_template.h"

#include <string_view>

#include "base/format.h"

namespace cpuinfer::checkpoint {
namespace {

constexpr std::string_view kThinkBegin = "<think>";
constexpr std::string_view kThinkEnd = "</think>";

std::string_view without_newlines_in_front(std::string_view text) {
  const size_t begin = text.find_first_not_of('\n');
  return begin == text.npos ? std::string_view() : text.substr(begin);
}

std::string_view without_newlines_behind(std::string_view text) {
  return text.substr(0, text.find_last_not_of('\n') + 1);  // npos + 1 is 0
}

struct Answer {
  std::string_view reasoning;  // without newlines around
  std::string_view content;
};

Answer split_answer(std::string_view text) {
  const size_t last_end = text.rfind(kThinkEnd);
  if (last_end == text.npos) return {"", text};
  std::string_view reasoning = without_newlines_behind(text.substr(0, text.find(kThinkEnd)));
  if (const size_t begin = reasoning.rfind(kThinkBegin); begin != reasoning.npos)
    reasoning.remove_prefix(begin + kThinkBegin.size());
  return {without_newlines_in_front(reasoning), without_newlines_in_front(text.substr(last_end + kThinkEnd.size()))};
}

// The template's loop over messages[::-1]. A user message that is wrapped like this is a tool's answer, no question.
size_t last_query_index(std::span<const ChatMessage> messages) {
  for (size_t i = messages.size(); i-- > 0;) {
    const ChatMessage& message = messages[i];
    if (message.role == "user" &&
        !(message.content.starts_with("<tool_response>") && message.content.ends_with("</tool_response>")))
      return i;
  }
  return messages.size() - 1;
}

class PromptWriter {
 public:
  void markup(std::string_view text) { put(text, true); }
  void content(std::string_view text) { put(text, false); }
  std::vector<PromptPiece> pieces;

 private:
  void put(std::string_view text, bool parse_special) {
    if (text.empty()) return;
    if (pieces.empty() || pieces.back().parse_special != parse_special) pieces.push_back({"", parse_special});
    pieces.back().text += text;
  }
};

}  // namespace

Result<std::vector<PromptPiece>> render_chatml(std::span<const ChatMessage> messages, const ChatOptions& options) {
  if (messages.empty()) return fail(ErrorCode::kUsage, "chat: no messages; give at least one of role \"user\"");
  const size_t last_query = last_query_index(messages);
  PromptWriter prompt;
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (message.role != "system" && message.role != "user" && message.role != "assistant")
      return fail(ErrorCode::kUsage, format("chat: message {} has role \"{}\"; expected \"system\", \"user\" or "
                                            "\"assistant\"",
                                            i, message.role));
    prompt.markup(format("<|im_start|>{}\n", message.role));
    if (message.role == "assistant") {
      const Answer answer = split_answer(message.content);
      const bool is_last = i + 1 == messages.size();
      // Reasoning is kept only in what follows the last question.
      if (i > last_query && (is_last || !answer.reasoning.empty())) {
        prompt.markup("<think>\n");
        prompt.content(answer.reasoning);
        prompt.markup("\n</think>\n\n");
        prompt.content(without_newlines_in_front(answer.content));
      } else {
        prompt.content(answer.content);
      }
    } else {
      prompt.content(message.content);
    }
    prompt.markup("<|im_end|>\n");
  }
  if (options.add_generation_prompt) {
    prompt.markup("<|im_start|>assistant\n");
    if (!options.enable_thinking) prompt.markup("<think>\n\n</think>\n\n");
  }
  return std::move(prompt.pieces);
}

}  // namespace cpuinfer::checkpoint
