// What is accepted is the tokenizer.json of Qwen2 and Qwen3: normalizer NFC, pre-tokenizer Split by one known pattern
// and then ByteLevel, model BPE, decoder ByteLevel, added tokens that match exactly. Everything that would change ids
// or texts is refused by name instead of being ignored. `truncation` and `padding` are ignored: they are settings of
// the program that saved the file, and Transformers overrides them in each call.
#include "engine/checkpoint/tokenizer_file.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/format.h"
#include "base/json.h"
#include "base/text.h"
#include "engine/checkpoint/tokenizer_words.h"
#include "engine/checkpoint/unicode.h"

namespace cpuinfer::checkpoint {
namespace {

constexpr int kBytes = 256;

// GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100 and following.
std::array<char32_t, kBytes> make_byte_alphabet() {
  std::array<char32_t, kBytes> alphabet{};
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < kBytes; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    alphabet[byte] = printable ? byte : next++;
  }
  return alphabet;
}

const std::array<char32_t, kBytes>& byte_alphabet() {
  static const auto kAlphabet = make_byte_alphabet();
  return kAlphabet;
}

// Inverse of the alphabet for code points below U+0144; -1 where there is none.
int byte_of_char(char32_t code_point) {
  static const auto kInverse = [] {
    std::array<int, kBytes + 68> inverse;
    inverse.fill(-1);
    for (int byte = 0; byte < kBytes; ++byte) inverse[byte_alphabet()[static_cast<size_t>(byte)]] = byte;
    return inverse;
  }();
  return code_point < kInverse.size() ? kInverse[code_point] : -1;
}

// As shown(), but an object by its type: "type \"Sequence\"".
std::string describe(const Json* value) {
  if (value == nullptr || !value->is_object()) return shown(value);
  const Json* type = value->find("type");
  return type != nullptr && type->is_string() ? format("type {}", in_quotes(type->as_string()))
                                              : "an object without type";
}

bool is_null(const Json* value) { return value == nullptr || value->is_null(); }

bool is_false_or_absent(const Json* value) { return is_null(value) || (value->is_bool() && !value->as_bool()); }

bool has_type(const Json* value, std::string_view type) {
  if (value == nullptr) return false;
  const Json* found = value->find("type");
  return found != nullptr && found->is_string() && found->as_string() == type;
}

// One tokenizer.json on its way to a TokenizerFile.
class Reader {
 public:
  Reader(const Json& root, std::string where) : root_(root), where_(std::move(where)) {}

  Result<TokenizerFile> read() {
    if (!root_.is_object()) return bad(format("expected an object, found {}", root_.kind_name()));
    TRY(check_normalizer());
    TRY(check_pre_tokenizer());
    TRY(check_post_processor());
    TRY(check_decoder());
    const Json* model = root_.find("model");
    if (model == nullptr || !model->is_object())
      return bad(format("expected an object \"model\", found {}", describe(model)));
    TRY(check_model_options(*model));
    TRY(read_vocabulary(*model));
    TRY(read_byte_tokens());
    TRY(read_merges(*model));
    TRY(read_added_tokens());
    return std::move(file_);
  }

 private:
  std::unexpected<Error> bad(std::string_view text) const {
    return fail(ErrorCode::kBadInput, format("{}: {}", where_, text));
  }
  std::unexpected<Error> unsupported(std::string_view text) const {
    return fail(ErrorCode::kUnsupported,
                format("{}: {}; cpuinfer reads byte-level BPE as Qwen2 and Qwen3 have it", where_, text));
  }

  Result<void> check_normalizer() const {
    const Json* normalizer = root_.find("normalizer");
    if (!has_type(normalizer, "NFC"))
      return unsupported(format("normalizer: expected type \"NFC\", found {}", describe(normalizer)));
    return {};
  }

  Result<void> check_byte_level(std::string_view name, const Json* step) const {
    if (!has_type(step, "ByteLevel"))
      return unsupported(format("{}: expected type \"ByteLevel\", found {}", name, describe(step)));
    return {};
  }

  Result<void> check_pre_tokenizer() const {
    const Json* sequence = root_.find("pre_tokenizer");
    const Json* steps = has_type(sequence, "Sequence") ? sequence->find("pretokenizers") : nullptr;
    if (steps == nullptr || !steps->is_array() || steps->as_array().size() != 2)
      return unsupported(format("pre_tokenizer: expected a \"Sequence\" of \"Split\" and \"ByteLevel\", found {}",
                                describe(sequence)));
    const Json& split = steps->as_array()[0];
    if (!has_type(&split, "Split"))
      return unsupported(format("pre_tokenizer: expected \"Split\" first, found {}", describe(&split)));
    const Json* pattern = split.find("pattern");
    const Json* regex = pattern != nullptr ? pattern->find("Regex") : nullptr;
    if (regex == nullptr || !regex->is_string())
      return unsupported(format("pre_tokenizer: expected a pattern \"Regex\", found {}", describe(pattern)));
    if (regex->as_string() != kQwenWordPattern)
      return unsupported(format("pre_tokenizer: unknown pattern {}, expected {}", in_quotes(regex->as_string(), 500),
                                in_quotes(kQwenWordPattern, 500)));
    const Json* behavior = split.find("behavior");
    if (behavior == nullptr || !behavior->is_string() || behavior->as_string() != "Isolated")
      return unsupported(format("pre_tokenizer: Split behavior {}, expected \"Isolated\"", describe(behavior)));
    if (!is_false_or_absent(split.find("invert"))) return unsupported("pre_tokenizer: Split with \"invert\"");
    const Json& byte_level = steps->as_array()[1];
    TRY(check_byte_level("pre_tokenizer", &byte_level));
    // Both are true where they are absent.
    for (const char* option : {"add_prefix_space", "use_regex"}) {
      const Json* value = byte_level.find(option);
      if (value == nullptr || !value->is_bool() || value->as_bool())
        return unsupported(format("pre_tokenizer: ByteLevel {} is {}, expected false", option, describe(value)));
    }
    return {};
  }

  // A ByteLevel post-processor only moves offsets, which nobody asks for here.
  Result<void> check_post_processor() const {
    const Json* processor = root_.find("post_processor");
    return is_null(processor) ? Result<void>{} : check_byte_level("post_processor", processor);
  }

  Result<void> check_decoder() const { return check_byte_level("decoder", root_.find("decoder")); }

  Result<void> check_model_options(const Json& model) const {
    const Json* type = model.find("type");
    // Files from before 2020 have no type; their model is told by its members.
    if (type != nullptr && !(type->is_string() && type->as_string() == "BPE"))
      return unsupported(format("model: expected type \"BPE\", found {}", describe(type)));
    const Json* dropout = model.find("dropout");
    if (!is_null(dropout) && !(dropout->is_number() && dropout->as_double() == 0))
      return unsupported(format("model: dropout {}, expected null", describe(dropout)));
    for (const char* option : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const Json* value = model.find(option);
      if (!is_null(value) && !(value->is_string() && value->as_string().empty()))
        return unsupported(format("model: {} {}, expected none", option, describe(value)));
    }
    for (const char* option : {"byte_fallback", "ignore_merges"})
      if (!is_false_or_absent(model.find(option)))
        return unsupported(format("model: {} is {}, expected false", option, describe(model.find(option))));
    // unk_token and fuse_unk do not matter: every byte has a token, so nothing is unknown.
    return {};
  }

  static bool is_id(const Json& value) {
    return value.is_int() && value.as_int() >= 0 && value.as_int() < kTokenIdLimit;
  }
  std::unexpected<Error> bad_id(std::string_view what, const Json& value) const {
    return bad(format("{}: expected an id in 0..{}, found {}", what, kTokenIdLimit - 1, describe(&value)));
  }

  // Enters a token under its spelling and its id, each of which must be new.
  Result<void> add_token(std::string_view what, TokenizerFile::Token token) {
    if (token.spelling.empty()) return bad(format("{}: a token has no text", what));
    const auto [owner, new_id] = by_id_.emplace(token.id, file_.tokens.size());
    if (!new_id)
      return bad(format("{}: {} has id {}, which {} has already", what, in_quotes(token.spelling), token.id,
                        in_quotes(file_.tokens[owner->second].spelling)));
    by_spelling_.emplace(token.spelling, file_.tokens.size());
    file_.tokens.push_back(std::move(token));
    return {};
  }

  Result<void> read_vocabulary(const Json& model) {
    const Json* vocabulary = model.find("vocab");
    if (vocabulary == nullptr || !vocabulary->is_object())
      return bad(format("model.vocab: expected an object of ids, found {}", describe(vocabulary)));
    const size_t count = vocabulary->as_object().size();
    file_.tokens.reserve(count);
    by_spelling_.reserve(count);
    by_id_.reserve(count);
    for (const auto& [spelling, id] : vocabulary->as_object()) {
      if (!is_id(id)) return bad_id(format("model.vocab[{}]", in_quotes(spelling)), id);
      TRY(add_token("model.vocab", {spelling, static_cast<TokenId>(id.as_int()), false, false}));
    }
    return {};
  }

  Result<void> read_byte_tokens() {
    for (size_t byte = 0; byte < kBytes; ++byte) {
      std::string spelling;
      append_utf8(byte_alphabet()[byte], spelling);
      const auto token = by_spelling_.find(spelling);
      if (token == by_spelling_.end())
        return bad(
            format("model.vocab: no token {} for byte 0x{:02X}: text with it could not be encoded; train with "
                   "the whole byte-level alphabet",
                   in_quotes(spelling), byte));
      file_.byte_tokens[byte] = file_.tokens[token->second].id;
    }
    return {};
  }

  Result<TokenId> vocabulary_id(size_t rank, std::string_view spelling) const {
    const auto token = by_spelling_.find(std::string(spelling));
    if (token == by_spelling_.end())
      return bad(format("model.merges[{}]: {} is not in model.vocab", rank, in_quotes(spelling)));
    return file_.tokens[token->second].id;
  }

  // Either ["a", "b"] or, before tokenizers 0.20, "a b".
  Result<std::pair<std::string_view, std::string_view>> read_pair(size_t rank, const Json& merge) const {
    if (merge.is_array() && merge.as_array().size() == 2 && merge.as_array()[0].is_string() &&
        merge.as_array()[1].is_string())
      return std::pair<std::string_view, std::string_view>{merge.as_array()[0].as_string(),
                                                           merge.as_array()[1].as_string()};
    if (merge.is_string()) {
      const std::string_view text = merge.as_string();
      const size_t space = text.find(' ');
      if (space != text.npos && text.find(' ', space + 1) == text.npos)
        return std::pair{text.substr(0, space), text.substr(space + 1)};
    }
    return bad(format("model.merges[{}]: expected [\"a\", \"b\"] or \"a b\", found {}", rank, describe(&merge)));
  }

  Result<void> read_merges(const Json& model) {
    const Json* merges = model.find("merges");
    if (merges == nullptr || !merges->is_array())
      return bad(format("model.merges: expected an array, found {}", describe(merges)));
    std::unordered_set<uint64_t> seen;
    size_t rank = 0;
    for (const Json& merge : merges->as_array()) {
      TRY_ASSIGN(const auto pair, read_pair(rank, merge));
      TRY_ASSIGN(const TokenId left, vocabulary_id(rank, pair.first));
      TRY_ASSIGN(const TokenId right, vocabulary_id(rank, pair.second));
      TRY_ASSIGN(const TokenId result, vocabulary_id(rank, std::string(pair.first) + std::string(pair.second)));
      if (!seen.insert(static_cast<uint64_t>(left) << 32 | static_cast<uint64_t>(right)).second)
        return bad(format("model.merges[{}]: {} and {} are merged twice", rank, in_quotes(pair.first),
                          in_quotes(pair.second)));
      file_.merges.push_back({left, right, result});
      ++rank;
    }
    return {};
  }

  Result<void> read_added_tokens() {
    const Json* added = root_.find("added_tokens");
    if (is_null(added)) return {};
    if (!added->is_array()) return bad(format("added_tokens: expected an array, found {}", describe(added)));
    for (size_t i = 0; i < added->as_array().size(); ++i)
      TRY(read_added_token(format("added_tokens[{}]", i), added->as_array()[i]));
    return {};
  }

  Result<void> read_added_token(std::string_view what, const Json& entry) {
    const Json* content = entry.find("content");
    const Json* id_value = entry.find("id");
    if (content == nullptr || !content->is_string() || id_value == nullptr)
      return bad(format("{}: expected an object with \"content\" (a string) and \"id\"", what));
    if (content->as_string().size() > kMaxAddedTokenBytes)
      return bad(format("{}: {} has {} bytes, expected at most {}", what, in_quotes(content->as_string()),
                        content->as_string().size(), kMaxAddedTokenBytes));
    for (const char* flag : {"special", "single_word", "lstrip", "rstrip", "normalized"}) {
      const Json* value = entry.find(flag);
      if (value == nullptr || !value->is_bool())
        return bad(format("{}: {}: expected true or false, found {}", what, flag, describe(value)));
      if (value->as_bool() && std::string_view(flag) != "special")
        return unsupported(
            format("{}: {} has \"{}\": true, expected false", what, in_quotes(content->as_string()), flag));
    }
    if (!is_id(*id_value)) return bad_id(format("{}: id", what), *id_value);
    const auto id = static_cast<TokenId>(id_value->as_int());
    const bool special = entry.find("special")->as_bool();
    const auto known = by_spelling_.find(content->as_string());
    if (known == by_spelling_.end()) return add_token(what, {content->as_string(), id, true, special});
    TokenizerFile::Token& token = file_.tokens[known->second];
    if (token.added) return bad(format("{}: {} is added twice", what, in_quotes(token.spelling)));
    if (token.id != id)
      return bad(
          format("{}: {} has id {}, but model.vocab has it with id {}", what, in_quotes(token.spelling), id, token.id));
    token.added = true;
    token.special = special;
    return {};
  }

  const Json& root_;
  std::string where_;
  TokenizerFile file_;
  std::unordered_map<std::string, size_t> by_spelling_;  // index into file_.tokens
  std::unordered_map<TokenId, size_t> by_id_;
};

// "eos_token" is a string or, in older files, an object with "content".
Result<std::optional<std::string>> read_eos_token(const Json& config, std::string_view where) {
  const Json* eos = config.find("eos_token");
  if (is_null(eos)) return std::optional<std::string>{};
  const Json* content = eos->is_object() ? eos->find("content") : eos;
  if (content == nullptr || !content->is_string())
    return fail(ErrorCode::kBadInput, format("{}: eos_token: expected a string, found {}", where, describe(eos)));
  return std::optional(content->as_string());
}

// "chat_template" is a string, or an array of {"name", "template"} of which "default" counts.
Result<std::optional<std::string>> read_chat_template(const Json& config, std::string_view where) {
  const Json* value = config.find("chat_template");
  if (is_null(value)) return std::optional<std::string>{};
  if (value->is_string()) return std::optional(value->as_string());
  if (value->is_array()) {
    for (const Json& entry : value->as_array()) {
      const Json* name = entry.find("name");
      const Json* text = entry.find("template");
      if (name != nullptr && name->is_string() && name->as_string() == "default" && text != nullptr &&
          text->is_string())
        return std::optional(text->as_string());
    }
    return std::optional<std::string>{};
  }
  return fail(ErrorCode::kBadInput, format("{}: chat_template: expected a string, found {}", where, describe(value)));
}

// Transformers adds the tokens listed here to those of tokenizer.json, so there must be none that is missing there.
Result<void> check_added_tokens_decoder(const Json& config, std::string_view where, const TokenizerFile& file) {
  const Json* decoder = config.find("added_tokens_decoder");
  if (is_null(decoder)) return {};
  if (!decoder->is_object())
    return fail(ErrorCode::kBadInput,
                format("{}: added_tokens_decoder: expected an object, found {}", where, describe(decoder)));
  std::unordered_map<std::string, std::string_view> added;
  for (const auto& token : file.tokens)
    if (token.added) added.emplace(format("{}", token.id), token.spelling);
  for (const auto& [id, entry] : decoder->as_object()) {
    const Json* content = entry.find("content");
    const auto token = added.find(id);
    if (content == nullptr || !content->is_string() || token == added.end() || token->second != content->as_string())
      return fail(
          ErrorCode::kBadInput,
          format("{}: added_tokens_decoder[{}] is {}, but the added token with this id in tokenizer.json is {}; "
                 "save both files with the same program",
                 where, in_quotes(id), describe(content), token == added.end() ? "missing" : in_quotes(token->second)));
  }
  return {};
}

}  // namespace

Result<TokenizerFile> parse_tokenizer_file(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                                           std::string_view where) {
  const std::string file_where = format("{}/tokenizer.json", where);
  TRY_ASSIGN(const Json root, parse_json(tokenizer_json, file_where));
  TRY_ASSIGN(TokenizerFile file, Reader(root, file_where).read());
  if (tokenizer_config_json.empty()) return file;
  const std::string config_where = format("{}/tokenizer_config.json", where);
  TRY_ASSIGN(const Json config, parse_json(tokenizer_config_json, config_where));
  if (!config.is_object())
    return fail(ErrorCode::kBadInput, format("{}: expected an object, found {}", config_where, config.kind_name()));
  TRY_ASSIGN(file.eos_token, read_eos_token(config, config_where));
  TRY_ASSIGN(file.chat_template, read_chat_template(config, config_where));
  TRY(check_added_tokens_decoder(config, config_where, file));
  return file;
}

std::string bytes_of_spelling(std::string_view spelling) {
  std::string bytes;
  for (std::string_view rest = spelling; !rest.empty();) {
    const Utf8Char next = first_utf8_char(rest);
    const int byte = byte_of_char(next.code_point);
    if (byte < 0) return std::string(spelling);
    bytes.push_back(static_cast<char>(static_cast<unsigned char>(byte)));
    rest.remove_prefix(next.length);
  }
  return bytes;
}

}  // namespace cpuinfer::checkpoint
