// A conversation as a file: what was said, and the tokens whose keys and values a KV store may still have.
//
//   {"format": "cpuinfer conversation", "version": 1, "model": "Qwen3-30B-A3B", "system": "", "think": true,
//    "messages": [{"role": "user", "content": "..."}, ...], "tokens": [151644, ...]}
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "engine/checkpoint/chat_template.h"

namespace cpuinfer::tools {

struct Conversation {
  std::string model;  ///< the name of the model, for people
  std::string system;
  bool think = true;
  std::vector<checkpoint::ChatMessage> messages;
  /// What the sequence held: reuse() of these finds its pages. Only a hint: texts decide what is said.
  std::vector<TokenId> tokens;
};

/// Hostile text to a conversation; `where` names it in messages. Errors: kBadInput.
Result<Conversation> parse_conversation(std::string_view text, const std::string& where);

/// Errors: kNotFound, kBadInput (no such file, damaged, another version; with the place and what was expected).
Result<Conversation> read_conversation(const std::string& path);

/// The file appears, or replaces one of its name, when it is complete. Errors: of checkpoint::write_whole_file.
Result<void> write_conversation(const std::string& path, const Conversation& conversation);

}  // namespace cpuinfer::tools
