// Encoding, in the order in which `tokenizers` does it:
//   1. the text is cut at added tokens (leftmost, then longest), which become their ids;
//   2. the text between them: ill-formed UTF-8 -> U+FFFD, then NFC, then words (tokenizer_words.h);
//   3. each byte of a word becomes its token; then, again and again, the two neighbours with the merge of lowest rank
//      (leftmost among equals) become one token.
#include "engine/checkpoint/tokenizer.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/types.h"
#include "engine/checkpoint/checkpoint_file.h"
#include "engine/checkpoint/tokenizer_file.h"
#include "engine/checkpoint/tokenizer_words.h"
#include "engine/checkpoint/unicode.h"

namespace cpuinfer::checkpoint {
namespace {

constexpr int32_t kNone = -1;
constexpr int64_t kMaxFileBytes = 64_MiB;  // Qwen3's tokenizer.json has 11 MB

uint64_t pair_key(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t edge_key(uint32_t node, char byte) { return uint64_t{node} << 8 | static_cast<unsigned char>(byte); }

}  // namespace

struct Tokenizer::Scratch {
  // The word as a list of tokens, linked by index. A dead symbol was merged into the one before it.
  struct Symbol {
    TokenId token;
    int64_t previous;
    int64_t next;
  };
  struct Candidate {
    int32_t rank;
    TokenId result;
    int64_t left;
    // For a heap with the lowest rank, then the leftmost, on top.
    bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
  };
  std::vector<Symbol> symbols;
  std::vector<Candidate> candidates;
};

Tokenizer Tokenizer::build(TokenizerFile file) {
  Tokenizer tokenizer;
  TokenId limit = 0;
  for (const auto& token : file.tokens) limit = std::max(limit, token.id + 1);
  tokenizer.bytes_.resize(static_cast<size_t>(limit));
  tokenizer.special_.resize(static_cast<size_t>(limit));
  tokenizer.ids_.reserve(file.tokens.size());
  tokenizer.trie_tokens_.push_back(kNone);
  for (auto& token : file.tokens) {
    const auto index = static_cast<size_t>(token.id);
    tokenizer.bytes_[index] = bytes_of_spelling(token.spelling);
    tokenizer.special_[index] = token.special;
    if (token.added) tokenizer.add_to_trie(token.spelling, token.id);
    tokenizer.ids_.emplace(std::move(token.spelling), token.id);
  }
  std::copy(file.byte_tokens.begin(), file.byte_tokens.end(), tokenizer.byte_tokens_);
  tokenizer.merges_.reserve(file.merges.size());
  int32_t rank = 0;
  for (const auto& merge : file.merges)
    tokenizer.merges_.emplace(pair_key(merge.left, merge.right), Merge{rank++, merge.result});
  tokenizer.eos_token_ = std::move(file.eos_token);
  tokenizer.chat_template_ = std::move(file.chat_template);
  return tokenizer;
}

Result<Tokenizer> Tokenizer::open(const std::filesystem::path& directory) {
  auto found = read_whole_file(directory / "tokenizer.json", kMaxFileBytes);
  if (!found && found.error().code == ErrorCode::kNotFound)
    found.error().message += "; a Hugging Face model directory is expected here";
  TRY_ASSIGN(const std::string tokenizer_json, std::move(found));
  std::string config_json;
  std::error_code ignored;  // where nothing can be looked at, tokenizer.json could not be read either
  const auto config_path = directory / "tokenizer_config.json";
  if (std::filesystem::exists(config_path, ignored)) {
    TRY_ASSIGN(config_json, read_whole_file(config_path, kMaxFileBytes));
  }
  TRY_ASSIGN(Tokenizer tokenizer, parse(tokenizer_json, config_json, directory.string()));
  // Where Transformers 4.52 and later keep the template. It wins over the member of tokenizer_config.json there, too.
  const auto template_path = directory / "chat_template.jinja";
  if (std::filesystem::exists(template_path, ignored)) {
    TRY_ASSIGN(tokenizer.chat_template_, read_whole_file(template_path, kMaxFileBytes));
  }
  return tokenizer;
}

Result<Tokenizer> Tokenizer::parse(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                                   std::string_view where) {
  TRY_ASSIGN(TokenizerFile file, parse_tokenizer_file(tokenizer_json, tokenizer_config_json, where));
  return build(std::move(file));
}

void Tokenizer::add_to_trie(std::string_view content, TokenId token) {
  uint32_t node = 0;
  for (const char byte : content) {
    const auto [edge, is_new] = trie_edges_.emplace(edge_key(node, byte), static_cast<uint32_t>(trie_tokens_.size()));
    if (is_new) trie_tokens_.push_back(kNone);
    node = edge->second;
  }
  trie_tokens_[node] = token;
}

std::optional<Tokenizer::AddedMatch> Tokenizer::longest_added_token_at(std::string_view text) const {
  std::optional<AddedMatch> longest;
  uint32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto edge = trie_edges_.find(edge_key(node, text[i]));
    if (edge == trie_edges_.end()) break;
    node = edge->second;
    if (trie_tokens_[node] != kNone) longest = AddedMatch{trie_tokens_[node], i + 1};
  }
  return longest;
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, bool parse_special) const {
  const PromptPiece piece{std::string(text), parse_special};
  return encode(std::span(&piece, 1));
}

std::vector<TokenId> Tokenizer::encode(std::span<const PromptPiece> pieces) const {
  std::vector<TokenId> tokens;
  Scratch scratch;
  std::string plain;  // text since the last added token
  for (size_t i = 0; i < pieces.size();) {
    if (!pieces[i].parse_special) {
      plain += pieces[i++].text;
      continue;
    }
    // An added token may be spread over neighbouring pieces that all allow it.
    std::string joined;
    while (i < pieces.size() && pieces[i].parse_special) joined += pieces[i++].text;
    std::string_view text = joined;
    size_t plain_bytes = 0;
    while (plain_bytes < text.size()) {
      const auto match = longest_added_token_at(text.substr(plain_bytes));
      if (!match) {
        ++plain_bytes;
        continue;
      }
      plain += text.substr(0, plain_bytes);
      encode_plain(plain, scratch, tokens);
      plain.clear();
      tokens.push_back(match->token);
      text.remove_prefix(plain_bytes + match->bytes);
      plain_bytes = 0;
    }
    plain += text;
  }
  encode_plain(plain, scratch, tokens);
  return tokens;
}

void Tokenizer::encode_plain(std::string_view text, Scratch& scratch, std::vector<TokenId>& tokens) const {
  const std::string normal = nfc(replace_ill_formed(text));
  for (std::string_view rest = normal; !rest.empty();) {
    const size_t bytes = first_word_bytes(rest);
    encode_word(rest.substr(0, bytes), scratch, tokens);
    rest.remove_prefix(bytes);
  }
}

void Tokenizer::encode_word(std::string_view word, Scratch& scratch, std::vector<TokenId>& tokens) const {
  auto& symbols = scratch.symbols;
  auto& candidates = scratch.candidates;
  symbols.clear();
  candidates.clear();
  const auto merge_of = [&](int64_t left) -> const Merge* {
    const auto& symbol = symbols[static_cast<size_t>(left)];
    if (symbol.next == kNone) return nullptr;
    const auto merge = merges_.find(pair_key(symbol.token, symbols[static_cast<size_t>(symbol.next)].token));
    return merge == merges_.end() ? nullptr : &merge->second;
  };

  const auto length = static_cast<int64_t>(word.size());
  for (int64_t i = 0; i < length; ++i) {
    const auto byte = static_cast<unsigned char>(word[static_cast<size_t>(i)]);
    symbols.push_back({byte_tokens_[byte], i - 1, i + 1 < length ? i + 1 : kNone});
  }
  for (int64_t i = 0; i < length; ++i)
    if (const Merge* merge = merge_of(i)) candidates.push_back({merge->rank, merge->result, i});
  std::make_heap(candidates.begin(), candidates.end());

  const auto push = [&](int64_t left) {
    if (const Merge* merge = merge_of(left)) {
      candidates.push_back({merge->rank, merge->result, left});
      std::push_heap(candidates.begin(), candidates.end());
    }
  };
  while (!candidates.empty()) {
    std::pop_heap(candidates.begin(), candidates.end());
    const Scratch::Candidate best = candidates.back();
    candidates.pop_back();
    auto& left = symbols[static_cast<size_t>(best.left)];
    // Outdated if either side was merged with something else meanwhile. Comparing the results is enough: a later
    // pair at the same place spells a longer text, so its result is another token.
    if (left.token == kNone) continue;
    const Merge* current = merge_of(best.left);
    if (current == nullptr || current->result != best.result) continue;
    auto& right = symbols[static_cast<size_t>(left.next)];
    right.token = kNone;
    left.token = best.result;
    left.next = right.next;
    if (left.next != kNone) symbols[static_cast<size_t>(left.next)].previous = best.left;
    push(best.left);
    if (left.previous != kNone) push(left.previous);
  }
  for (int64_t i = 0; i != kNone && i < length; i = symbols[static_cast<size_t>(i)].next)
    tokens.push_back(symbols[static_cast<size_t>(i)].token);
}

std::string Tokenizer::decode(std::span<const TokenId> tokens, bool skip_special) const {
  std::string bytes;
  for (const TokenId token : tokens)
    if (!(skip_special && is_special(token))) bytes += token_bytes(token);
  return replace_ill_formed(bytes);
}

std::string_view Tokenizer::token_bytes(TokenId token) const {
  return token >= 0 && token < id_limit() ? std::string_view(bytes_[static_cast<size_t>(token)]) : std::string_view();
}

std::optional<TokenId> Tokenizer::find(std::string_view token_text) const {
  const auto token = ids_.find(std::string(token_text));
  return token == ids_.end() ? std::nullopt : std::optional(token->second);
}

bool Tokenizer::is_special(TokenId token) const {
  return token >= 0 && token < id_limit() && special_[static_cast<size_t>(token)];
}

std::string Detokenizer::push(TokenId token) {
  if (skip_special_ && tokenizer_->is_special(token)) return {};
  held_ += tokenizer_->token_bytes(token);
  size_t whole = 0;
  while (whole < held_.size()) {
    const Utf8Char next = first_utf8_char(std::string_view(held_).substr(whole));
    if (next.kind == Utf8Char::Kind::kIncomplete) break;
    whole += next.length;
  }
  std::string text = replace_ill_formed(std::string_view(held_).substr(0, whole));
  held_.erase(0, whole);
  return text;
}

std::string Detokenizer::finish() { return replace_ill_formed(std::exchange(held_, {})); }

}  // namespace cpuinfer::checkpoint
