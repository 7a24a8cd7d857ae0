// Answers tests/make_tokenizer_cases.py compare: tokenizer_pipe DIR < requests > answers. No test by itself.
//
// Request: uint8 kind, uint32 n, n bytes. Kind 0: text, plain; 1: text with added tokens; 2: int32 ids to decode.
// Answer: uint32 n, n int32 ids, then decode(ids) and decode(ids, skip_special), each as uint32 n and n bytes.
// Little-endian. The Detokenizer must agree with decode(), and push() be well-formed, or the program fails.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <iterator>
#include <string>

#include "engine/checkpoint/tokenizer.h"
#include "engine/checkpoint/unicode.h"

namespace {

using cpuinfer::TokenId;
using cpuinfer::checkpoint::Detokenizer;
using cpuinfer::checkpoint::replace_ill_formed;
using cpuinfer::checkpoint::Tokenizer;

void put(const void* bytes, size_t count) {
  std::cout.write(static_cast<const char*>(bytes), static_cast<std::streamsize>(count));
}

void put_count(size_t count) {
  const auto narrow = static_cast<uint32_t>(count);
  put(&narrow, sizeof narrow);
}

bool put_decoded(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, bool skip_special) {
  const std::string text = tokenizer.decode(ids, skip_special);
  put_count(text.size());
  put(text.data(), text.size());
  Detokenizer stream(tokenizer, skip_special);
  std::string streamed;
  for (const TokenId id : ids) {
    const std::string part = stream.push(id);
    if (replace_ill_formed(part) != part) return false;
    streamed += part;
  }
  return streamed + stream.finish() == text;
}

}  // namespace

int main(int argc, char** argv) {
  const auto tokenizer = Tokenizer::open(argc == 2 ? argv[1] : "");
  if (!tokenizer) {
    std::cerr << tokenizer.error().message << '\n';
    return 1;
  }
  const std::string input((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
  for (size_t at = 0; at + 5 <= input.size();) {
    const char kind = input[at];
    uint32_t bytes = 0;
    std::memcpy(&bytes, input.data() + at + 1, sizeof bytes);
    const std::string body = input.substr(at + 5, bytes);
    at += 5 + body.size();
    std::vector<TokenId> ids;
    if (kind == 2) {
      ids.resize(body.size() / sizeof(TokenId));
      std::memcpy(ids.data(), body.data(), ids.size() * sizeof(TokenId));
    } else {
      ids = tokenizer->encode(body, kind == 1);
    }
    put_count(ids.size());
    put(ids.data(), ids.size() * sizeof(TokenId));
    if (!put_decoded(*tokenizer, ids, false) || !put_decoded(*tokenizer, ids, true)) {
      std::cerr << "the incremental text differs from decode()\n";
      return 1;
    }
  }
  return std::cout.flush() ? 0 : 1;
}
