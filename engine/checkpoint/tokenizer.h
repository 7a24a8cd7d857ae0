// Text to token ids and back: the byte-level BPE of Qwen2 and Qwen3, read from a Hugging Face tokenizer.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "base/types.h"

namespace cpuinfer::checkpoint {

struct TokenizerFile;

/// Text of a prompt in pieces: special tokens are recognised only where parse_special is true.
struct PromptPiece {
  std::string text;
  bool parse_special = false;
};

/// Gives the ids and texts that Hugging Face `tokenizers` gives (docs/tokenizer.md has the rules and the evidence).
/// A value; immutable after it was made, so any number of threads may use one.
/// Invariant: every byte has a token, so that every text can be encoded without loss, up to NFC.
class Tokenizer {
 public:
  /// Reads `directory`/tokenizer.json and, where they exist, tokenizer_config.json and chat_template.jinja.
  /// Errors: kNotFound (no tokenizer.json, or unreadable), kBadInput (a file that is no regular file or has more than
  /// 64 MiB), kBadInput and kUnsupported as parse().
  static Result<Tokenizer> open(const std::filesystem::path& directory);

  /// The texts may be hostile. `tokenizer_config_json` may be empty. `where` names their directory in messages.
  /// Errors: kBadInput (not what a tokenizer.json must be), kUnsupported (well-formed, but not the kind of
  /// tokenizer that Qwen2 and Qwen3 have; the message names the difference).
  static Result<Tokenizer> parse(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                                 std::string_view where);

  /// Token ids of any bytes; ill-formed UTF-8 becomes U+FFFD first. With `parse_special`, added tokens (special or
  /// not, such as <|im_end|> and <think>) are recognised, otherwise their texts are like any other text.
  /// Nothing is put in front or behind. O(n log n) in the length of the text.
  std::vector<TokenId> encode(std::string_view text, bool parse_special = true) const;

  /// The same for the concatenated pieces: words may cross a border between pieces; added tokens are recognised
  /// only where all their characters stand in pieces with parse_special.
  std::vector<TokenId> encode(std::span<const PromptPiece> pieces) const;

  /// Well-formed UTF-8: ill-formed bytes become U+FFFD. Ids without an entry add nothing. `skip_special` leaves out
  /// the tokens for which is_special().
  std::string decode(std::span<const TokenId> tokens, bool skip_special = false) const;

  /// The bytes that a token adds to the text; not always whole characters. Empty for ids without an entry.
  std::string_view token_bytes(TokenId token) const;

  /// The token that tokenizer.json spells like this, e.g. "<|im_end|>", or "Ġthe" for " the".
  std::optional<TokenId> find(std::string_view token_text) const;

  /// Whether tokenizer.json marks it as special (<|im_end|> is, <think> is not). Any id may be asked for.
  bool is_special(TokenId token) const;

  /// The largest id + 1. May be less than the vocabulary size of the model, which is padded.
  int id_limit() const { return static_cast<int>(bytes_.size()); }

  /// From tokenizer_config.json.
  const std::optional<std::string>& eos_token() const { return eos_token_; }
  /// Jinja source from chat_template.jinja or else from tokenizer_config.json. Not executed: see chat_template.h.
  const std::optional<std::string>& chat_template() const { return chat_template_; }

 private:
  struct Merge {
    int32_t rank;  // lower is merged earlier
    TokenId result;
  };
  struct AddedMatch {
    TokenId token;
    size_t bytes;
  };
  struct Scratch;  // memory of one encode call, used again for each word

  Tokenizer() = default;
  static Tokenizer build(TokenizerFile file);
  void add_to_trie(std::string_view content, TokenId token);
  std::optional<AddedMatch> longest_added_token_at(std::string_view text) const;
  void encode_plain(std::string_view text, Scratch& scratch, std::vector<TokenId>& tokens) const;
  void encode_word(std::string_view word, Scratch& scratch, std::vector<TokenId>& tokens) const;

  std::vector<std::string> bytes_;  // by id
  std::vector<bool> special_;       // by id
  std::unordered_map<std::string, TokenId> ids_;
  TokenId byte_tokens_[256] = {};
  std::unordered_map<uint64_t, Merge> merges_;  // key: left id << 32 | right id

  // The added tokens as a trie. Edge key: node << 8 | byte. Node 0 is the root.
  std::unordered_map<uint64_t, uint32_t> trie_edges_;
  std::vector<TokenId> trie_tokens_;  // by node; -1 where no added token ends

  std::optional<std::string> eos_token_;
  std::optional<std::string> chat_template_;
};

/// One stream of tokens -> text; holds back bytes until they form whole UTF-8 characters, so that every returned
/// string is well-formed. All strings together are Tokenizer::decode() of all tokens.
/// The tokenizer must stay where it is and outlive this. One thread at a time.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  /// The text that `token` completes; often empty within a character of several tokens.
  std::string push(TokenId token);
  /// U+FFFD if the stream ended within a character, else empty. Afterwards a new stream may begin.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string held_;  // an incomplete character: at most 3 bytes between calls
};

}  // namespace cpuinfer::checkpoint
