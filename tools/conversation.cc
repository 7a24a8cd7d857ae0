#include "tools/conversation.h"

#include <filesystem>
#include <system_error>

#include "base/format.h"
#include "base/json.h"
#include "engine/checkpoint/checkpoint_file.h"

namespace cpuinfer::tools {
namespace {

constexpr const char* kFormat = "cpuinfer conversation";
constexpr int kVersion = 1;
constexpr int64_t kMaxBytes = 256_MiB;

}  // namespace

Result<Conversation> read_conversation(const std::string& path) {
  TRY_ASSIGN(const std::string text, checkpoint::read_whole_file(path, kMaxBytes));
  return parse_conversation(text, path);
}

Result<Conversation> parse_conversation(std::string_view text, const std::string& where) {
  // A value for each token, and some for each message.
  TRY_ASSIGN(const Json json, parse_json(text, where, {.values = 8'000'000}));
  const auto bad = [&](const std::string& what) { return fail(ErrorCode::kBadInput, format("{}: {}", where, what)); };
  const auto text_of = [](const Json& object, const char* key) -> const std::string* {
    const Json* const value = object.find(key);
    return value != nullptr && value->is_string() ? &value->as_string() : nullptr;
  };
  const std::string* const name = text_of(json, "format");
  const Json* const version = json.find("version");
  if (name == nullptr || *name != kFormat) return bad(format("is no conversation (\"format\": \"{}\")", kFormat));
  if (version == nullptr || !version->is_int() || version->as_int() != kVersion)
    return bad(format("is a conversation of version {}, expected {}",
                      version == nullptr ? "(none)" : to_json_text(*version), kVersion));
  Conversation conversation;
  if (const std::string* const model = text_of(json, "model")) conversation.model = *model;
  if (const std::string* const system = text_of(json, "system")) conversation.system = *system;
  if (const Json* const think = json.find("think"); think != nullptr && think->is_bool())
    conversation.think = think->as_bool();

  const Json* const messages = json.find("messages");
  if (messages == nullptr || !messages->is_array()) return bad("\"messages\" is no array");
  for (const Json& message : messages->as_array()) {
    const std::string* const role = text_of(message, "role");
    const std::string* const content = text_of(message, "content");
    const char* const expected = conversation.messages.size() % 2 == 0 ? "user" : "assistant";
    if (role == nullptr || content == nullptr || *role != expected)
      return bad(format("message {}: expected \"role\": \"{}\" and a text as \"content\"", conversation.messages.size(),
                        expected));
    conversation.messages.push_back({*role, *content});
  }
  if (conversation.messages.size() % 2 != 0) return bad("the last message has no answer");
  if (const Json* const tokens = json.find("tokens"); tokens != nullptr && tokens->is_array()) {
    for (const Json& token : tokens->as_array()) {
      if (!token.is_int() || token.as_int() < 0 || token.as_int() > INT32_MAX)
        return bad(format("\"tokens\": {} is no token id", to_json_text(token)));
      conversation.tokens.push_back(static_cast<TokenId>(token.as_int()));
    }
  }
  return conversation;
}

Result<void> write_conversation(const std::string& path, const Conversation& conversation) {
  Json json;
  json.set("format", kFormat);
  json.set("version", kVersion);
  json.set("model", conversation.model);
  json.set("system", conversation.system);
  json.set("think", conversation.think);
  Json messages{Json::Array{}};
  for (const checkpoint::ChatMessage& message : conversation.messages) {
    Json entry;
    entry.set("role", message.role);
    entry.set("content", message.content);
    messages.push_back(std::move(entry));
  }
  json.set("messages", std::move(messages));
  Json tokens{Json::Array{}};
  for (const TokenId token : conversation.tokens) tokens.push_back(int64_t{token});
  json.set("tokens", std::move(tokens));
  std::error_code error;
  const bool is_new = !std::filesystem::exists(path, error);
  TRY(checkpoint::write_whole_file(path, to_json_text(json) + "\n"));
  // What people say is for their eyes, unless they have decided otherwise.
  if (is_new)
    std::filesystem::permissions(path, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write, error);
  return {};
}

}  // namespace cpuinfer::tools
