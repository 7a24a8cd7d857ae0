// Arbitrary bytes as tokenizer.json, as tokenizer_config.json, as text and as token ids.
//
// The first byte, modulo 3, chooses what the rest is:
//   0: a tokenizer.json up to the first zero byte, behind which tokenizer_config.json follows
//   1: text for a good tokenizer
//   2: uint16 at, uint8 skip, text: a good tokenizer.json with `skip` bytes from `at` on replaced by the text
// Crashes and broken invariants abort.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/json.h"
#include "engine/checkpoint/tokenizer.h"
#include "engine/checkpoint/tokenizer_file.h"
#include "engine/checkpoint/tokenizer_words.h"
#include "engine/checkpoint/unicode.h"

using namespace cpuinfer;
using namespace cpuinfer::checkpoint;

namespace {

Json object(std::string_view text) {
  auto json = parse_json(text, "fuzz");
  ENSURE(json.has_value(), "the fuzz target's own JSON is good");
  return std::move(*json);
}

// The whole byte-level alphabet, a chain of merges, and added tokens that overlap.
std::string good_tokenizer_json() {
  Json vocabulary{Json::Object{}};
  Json merges{Json::Array{}};
  int next_id = 0;
  std::vector<std::string> letters;
  for (char32_t c = 0; c < 0x144; ++c) {
    const bool printable = (c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xAC) || c >= 0xAE;
    if (!printable) continue;
    std::string letter;
    append_utf8(c, letter);
    vocabulary.set(letter, next_id++);
  }
  for (const auto& [left, right] : {std::pair{"a", "a"},
                                    {"aa", "aa"},
                                    {"a", "b"},
                                    {"Ġ", "a"},
                                    {"Ġ", "Ġ"},
                                    {"ĠĠ", "ĠĠ"},
                                    {"'", "s"},
                                    {"Ì", "ģ"},
                                    {"Ã", "©"},
                                    {"ð", "Ł"},
                                    {"ðŁ", "ĺ"},
                                    {"Ċ", "Ċ"},
                                    {"0", "0"}}) {
    vocabulary.set(std::string(left) + right, next_id++);
    merges.push_back(Json(Json::Array{left, right}));
  }
  Json added{Json::Array{}};
  for (const char* content : {"<|im_end|>", "<a>", "<a>b", "b<", "\u27e8\u00e9\u27e9"}) {
    Json token = object(R"({"special":false,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false})");
    token.set("content", content);
    token.set("id", next_id++);
    if (content[1] == '|') token.set("special", true);
    added.push_back(std::move(token));
  }
  Json model = object(R"({"type":"BPE"})");
  model.set("vocab", std::move(vocabulary));
  model.set("merges", std::move(merges));
  Json pre_tokenizer = object(
      R"({"type":"Sequence","pretokenizers":[{"type":"Split","behavior":"Isolated"},
          {"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})");
  Json pattern;
  pattern.set("Regex", std::string(kQwenWordPattern));
  pre_tokenizer.as_object()[1].second.as_array()[0].set("pattern", std::move(pattern));
  Json root = object(R"({"normalizer":{"type":"NFC"},"decoder":{"type":"ByteLevel"}})");
  root.set("pre_tokenizer", std::move(pre_tokenizer));
  root.set("model", std::move(model));
  root.set("added_tokens", std::move(added));
  return to_json_text(root);
}

const Tokenizer& good_tokenizer() {
  static const Tokenizer kTokenizer = [] {
    auto tokenizer = Tokenizer::parse(good_tokenizer_json(), "", "fuzz");
    ENSURE(tokenizer.has_value(), "the fuzz target's own tokenizer is good");
    return std::move(*tokenizer);
  }();
  return kTokenizer;
}

std::string stream(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, bool skip_special) {
  Detokenizer detokenizer(tokenizer, skip_special);
  std::string text;
  for (const TokenId id : ids) {
    const std::string part = detokenizer.push(id);
    ENSURE(replace_ill_formed(part) == part, "a Detokenizer gives whole characters");
    text += part;
  }
  return text + detokenizer.finish();
}

// Holds for every tokenizer: an added token may have a spelling that decodes to something else, plain text not.
void check_plain_text(const Tokenizer& tokenizer, std::string_view text) {
  const std::string normal = nfc(replace_ill_formed(text));
  ENSURE(nfc(normal) == normal, "NFC is idempotent");
  ENSURE(tokenizer.decode(tokenizer.encode(text, false)) == normal, "plain text survives up to NFC");
  const auto ids = tokenizer.encode(text, true);
  ENSURE(stream(tokenizer, ids, true) == tokenizer.decode(ids, true), "streaming equals decode()");
}

void check_text(const Tokenizer& tokenizer, std::string_view text) {
  check_plain_text(tokenizer, text);
  const std::string normal = nfc(replace_ill_formed(text));
  const auto ids = tokenizer.encode(text, true);
  ENSURE(nfc(tokenizer.decode(ids)) == normal, "text with added tokens survives up to NFC");
  for (const bool skip_special : {false, true})
    ENSURE(stream(tokenizer, ids, skip_special) == tokenizer.decode(ids, skip_special), "streaming equals decode()");

  // Cut into pieces that all say the same, the ids are the same.
  const PromptPiece halves[] = {{std::string(text.substr(0, text.size() / 2)), true},
                                {std::string(text.substr(text.size() / 2)), true}};
  ENSURE(tokenizer.encode(halves) == ids, "a border between equal pieces changes nothing");

  std::vector<TokenId> any(text.size() / sizeof(TokenId));
  if (!any.empty()) std::memcpy(any.data(), text.data(), any.size() * sizeof(TokenId));
  for (TokenId& id : any)
    if (id % 2 != 0) id %= tokenizer.id_limit() + 3;
  ENSURE(stream(tokenizer, any, false) == tokenizer.decode(any), "any ids stream as they decode");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  static const std::string kGood = good_tokenizer_json();
  if (data[0] % 3 == 0) {
    const size_t zero = input.find('\0');
    const std::string_view config = zero == input.npos ? std::string_view() : input.substr(zero + 1);
    if (const auto tokenizer = Tokenizer::parse(input.substr(0, zero), config, "fuzz"))
      check_plain_text(*tokenizer, input);
    (void)Tokenizer::parse(kGood, input, "fuzz");
  } else if (data[0] % 3 == 1) {
    check_text(good_tokenizer(), input);
  } else if (size >= 4) {
    const size_t at = std::min<size_t>(kGood.size(), data[1] + size_t{256} * data[2]);
    const size_t skip = std::min<size_t>(kGood.size() - at, data[3]);
    std::string damaged = kGood;
    damaged.replace(at, skip, input.substr(3));
    if (const auto tokenizer = Tokenizer::parse(damaged, "", "fuzz")) check_plain_text(*tokenizer, input);
  }
  return 0;
}
