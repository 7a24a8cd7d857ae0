// tokenizer.json and tokenizer_config.json, checked. Only tokenizer.cc uses this.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/types.h"

namespace cpuinfer::checkpoint {

/// Ids are below this, so that a hostile file cannot make tables of gigabytes. Qwen3 ends at 151,668.
inline constexpr TokenId kTokenIdLimit = 1 << 21;

/// The longest text of an added token in bytes. Finding added tokens looks this far ahead from every byte of a text, so
/// that longer ones would make encoding quadratic.
inline constexpr size_t kMaxAddedTokenBytes = 1024;

/// What a checked tokenizer.json says. Invariants: spellings are unique and not empty; ids are unique, in
/// [0, kTokenIdLimit); both sides of each merge and its result are in the vocabulary; no merge comes twice.
struct TokenizerFile {
  struct Token {
    std::string spelling;  ///< as in the file
    TokenId id;
    bool added;
    bool special;  ///< implies added
  };
  struct Merge {
    TokenId left;
    TokenId right;
    TokenId result;
  };
  std::vector<Token> tokens;             ///< vocabulary and added tokens, each once, in no particular order
  std::vector<Merge> merges;             ///< in order of rank
  std::array<TokenId, 256> byte_tokens;  ///< the token of each byte
  std::optional<std::string> eos_token;
  std::optional<std::string> chat_template;
};

/// See Tokenizer::parse().
Result<TokenizerFile> parse_tokenizer_file(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                                           std::string_view where);

/// The bytes that a token of this spelling stands for. In a spelling each character of the byte-level alphabet
/// stands for one byte ("Ġ" for a space); a spelling with any other character stands for its own UTF-8 bytes.
std::string bytes_of_spelling(std::string_view spelling);

}  // namespace cpuinfer::checkpoint
