// Chat messages to a prompt: the ChatML of Qwen3.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/checkpoint/tokenizer.h"

namespace cpuinfer::checkpoint {

/// One turn of a conversation. Plain data.
struct ChatMessage {
  std::string role;  ///< "system", "user" or "assistant"
  std::string content;
};

struct ChatOptions {
  bool add_generation_prompt = true;  ///< end with the beginning of an answer
  bool enable_thinking = true;        ///< false: that beginning has an empty <think> block
};

/// The concatenated text equals, byte for byte, what Qwen3's chat_template renders for these messages without tools,
/// earlier <think> blocks left out included. The template's own text is in pieces with parse_special, the messages'
/// text in pieces without, so that nobody can write a turn of somebody else: <|im_end|> in a message stays text.
/// That the ids then differ from those of Transformers, which trusts messages, is on purpose.
/// Errors: kUsage for no messages and for another role.
Result<std::vector<PromptPiece>> render_chatml(std::span<const ChatMessage> messages, const ChatOptions& options);

}  // namespace cpuinfer::checkpoint
