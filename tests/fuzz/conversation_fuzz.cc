// Conversations from hostile text.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "tools/conversation.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto parsed = cpuinfer::tools::parse_conversation({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!parsed) return 0;
  ENSURE(parsed->messages.size() % 2 == 0, "every question has an answer");
  for (const cpuinfer::TokenId token : parsed->tokens) ENSURE(token >= 0, "token ids are not negative");
  return 0;
}
