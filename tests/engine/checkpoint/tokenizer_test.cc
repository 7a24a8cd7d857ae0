#include "engine/checkpoint/tokenizer.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <ctime>

#include "engine/checkpoint/unicode.h"
#include "tests/engine/checkpoint/temporary_directory.h"
#include "tests/engine/checkpoint/tokenizer_data.h"

using namespace cpuinfer;
using namespace cpuinfer::checkpoint;

namespace {

// All that a Detokenizer gives, each part checked to be whole characters.
std::string stream(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, bool skip_special) {
  Detokenizer detokenizer(tokenizer, skip_special);
  std::string text;
  for (const TokenId id : ids) {
    const std::string part = detokenizer.push(id);
    CHECK(replace_ill_formed(part) == part);
    text += part;
  }
  text += detokenizer.finish();
  CHECK(detokenizer.finish().empty());
  return text;
}

void check_decoding(const Tokenizer& tokenizer, const Json& item) {
  const auto ids = ids_of(*item.find("ids"));
  const std::string& decoded = item.find("decoded")->as_string();
  const std::string& without_special = item.find("decoded_without_special")->as_string();
  CHECK(tokenizer.decode(ids) == decoded);
  CHECK(tokenizer.decode(ids, true) == without_special);
  CHECK(stream(tokenizer, ids, false) == decoded);
  CHECK(stream(tokenizer, ids, true) == without_special);
}

void check_cases(const Tokenizer& tokenizer, const Json& cases) {
  REQUIRE(cases.find("encoding")->as_array().size() > 100);
  for (const Json& item : cases.find("encoding")->as_array()) {
    CAPTURE(item.find("name")->as_string());
    const std::string text = case_text(item);
    CHECK(tokenizer.encode(text) == ids_of(*item.find("ids")));
    CHECK(tokenizer.encode(text, false) == ids_of(*item.find("plain_ids")));
    check_decoding(tokenizer, item);
  }
  REQUIRE_FALSE(cases.find("pieces")->as_array().empty());
  for (const Json& item : cases.find("pieces")->as_array()) {
    CAPTURE(item.find("name")->as_string());
    std::vector<PromptPiece> pieces;
    for (const Json& piece : item.find("pieces")->as_array())
      pieces.push_back({piece.as_array()[0].as_string(), piece.as_array()[1].as_bool()});
    CHECK(tokenizer.encode(pieces) == ids_of(*item.find("ids")));
  }
  REQUIRE_FALSE(cases.find("decoding")->as_array().empty());
  for (const Json& item : cases.find("decoding")->as_array()) {
    CAPTURE(to_json_text(*item.find("ids")));
    check_decoding(tokenizer, item);
  }
}

// Processor time, which other programs on the machine do not change.
double seconds_to_encode(const Tokenizer& tokenizer, const std::string& text) {
  const std::clock_t start = std::clock();
  const auto ids = tokenizer.encode(text);
  const std::clock_t end = std::clock();
  CHECK(tokenizer.decode(ids) == nfc(replace_ill_formed(text)));
  return static_cast<double>(end - start) / CLOCKS_PER_SEC;
}

std::string repeat(std::string_view part, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += part;
  return text;
}

}  // namespace

TEST_CASE("the small tokenizer gives the ids and texts of Hugging Face tokenizers") {
  check_cases(small_tokenizer(), read_cases("small_cases.json"));
}

TEST_CASE("Qwen3's tokenizer gives the ids and texts of Hugging Face tokenizers") {
  const auto tokenizer = qwen3_tokenizer();
  if (!tokenizer) return;
  check_cases(*tokenizer, read_cases("qwen3_cases.json"));
  CHECK(tokenizer->id_limit() == 151669);
  CHECK(tokenizer->find("<|im_end|>") == 151645);
  CHECK(tokenizer->eos_token() == "<|im_end|>");
  CHECK(tokenizer->chat_template()->starts_with("{%- if tools %}"));
  CHECK(tokenizer->is_special(151645));
  CHECK_FALSE(tokenizer->is_special(*tokenizer->find("<think>")));
}

TEST_CASE("tokens can be looked up") {
  const Tokenizer tokenizer = small_tokenizer();
  const auto space_the = tokenizer.find("\u0120and");
  REQUIRE(space_the);
  CHECK(tokenizer.token_bytes(*space_the) == " and");
  CHECK_FALSE(tokenizer.is_special(*space_the));
  const auto end = tokenizer.find("<|im_end|>");
  REQUIRE(end);
  CHECK(tokenizer.token_bytes(*end) == "<|im_end|>");
  CHECK(tokenizer.is_special(*end));
  CHECK(tokenizer.find("no such token") == std::nullopt);
  CHECK(tokenizer.find("") == std::nullopt);
  CHECK(tokenizer.eos_token() == "<|im_end|>");
  CHECK(tokenizer.chat_template() == "{{- 'a template' }}");
  for (const TokenId id : {-1, INT32_MIN, INT32_MAX, tokenizer.id_limit()}) {
    CHECK(tokenizer.token_bytes(id).empty());
    CHECK_FALSE(tokenizer.is_special(id));
  }
  CHECK_FALSE(tokenizer.token_bytes(tokenizer.id_limit() - 1).empty());
}

TEST_CASE("a character of several tokens comes out whole, with its last token") {
  const Tokenizer tokenizer = small_tokenizer();
  const std::string text = "\U00012345";  // no merge reaches over its four bytes
  const auto ids = tokenizer.encode(text);
  REQUIRE(ids.size() >= 3);
  Detokenizer detokenizer(tokenizer);
  for (size_t i = 0; i + 1 < ids.size(); ++i) CHECK(detokenizer.push(ids[i]).empty());
  CHECK(detokenizer.push(ids.back()) == text);
  CHECK(detokenizer.finish().empty());
  // A stream that ends within the character, and then a new one.
  CHECK(detokenizer.push(ids[0]).empty());
  CHECK(detokenizer.finish() == kReplacementCharacter);
  const auto next = tokenizer.encode("a");
  CHECK(detokenizer.push(next[0]) == "a");
  // A special token inside a character does not disturb it where it is left out.
  CHECK(detokenizer.push(ids[0]).empty());
  CHECK(detokenizer.push(*tokenizer.find("<|im_end|>")).empty());
  std::string rest;
  for (size_t i = 1; i < ids.size(); ++i) rest += detokenizer.push(ids[i]);
  CHECK(rest == text);
}

TEST_CASE("a megabyte of anything takes no quadratic time") {
  const Tokenizer tokenizer = small_tokenizer();
  // A quadratic step over 2^20 places would take minutes; the limit leaves room for sanitizers.
  constexpr double kLimitSeconds = 20;
  for (const char* part : {"a",
                           "ab",
                           " ",
                           "\n",
                           " \n",
                           "-",
                           "0",
                           "'",
                           "\u0301",
                           "\u0301\u0323",
                           "a\u0301",
                           "\uAC00",
                           "\u1100\u1161",
                           "\u4EBA",
                           "\U0001F600",
                           "\xff",
                           "\xe2\x82",
                           "<",
                           "<a>b",
                           "<|im_end|>",
                           "The people. "}) {
    CAPTURE(part);
    CHECK(seconds_to_encode(tokenizer, repeat(part, 1 << 20)) < kLimitSeconds);
  }
}

TEST_CASE("open() says what it misses") {
  const auto missing = Tokenizer::open(tokenizer_data() / "none");
  REQUIRE_FALSE(missing);
  CHECK(missing.error().code == ErrorCode::kNotFound);
  CHECK(missing.error().message ==
        (tokenizer_data() / "none/tokenizer.json").string() +
            ": cannot be opened: No such file or directory; a Hugging Face model directory is expected here");

  // Without tokenizer_config.json; then with a template of its own file, which wins.
  const TemporaryDirectory directory;
  const auto& folder = directory.path();
  std::filesystem::copy_file(tokenizer_data() / "small/tokenizer.json", folder / "tokenizer.json");
  auto bare = Tokenizer::open(folder);
  REQUIRE(bare);
  CHECK(bare->eos_token() == std::nullopt);
  CHECK(bare->chat_template() == std::nullopt);
  std::filesystem::copy_file(tokenizer_data() / "small/tokenizer_config.json", folder / "tokenizer_config.json");
  std::ofstream(folder / "chat_template.jinja") << "{{ 'from a file' }}";
  auto full = Tokenizer::open(folder);
  REQUIRE(full);
  CHECK(full->eos_token() == "<|im_end|>");
  CHECK(full->chat_template() == "{{ 'from a file' }}");
}

TEST_CASE("open() reads regular files of a reasonable size only") {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}) {
    CAPTURE(name);
    const TemporaryDirectory directory;
    std::filesystem::copy_file(tokenizer_data() / "small/tokenizer.json", directory.path() / "tokenizer.json");
    const auto file = directory.path() / name;
    const auto refusal = [&] {
      const auto tokenizer = Tokenizer::open(directory.path());
      REQUIRE_FALSE(tokenizer);
      CHECK(tokenizer.error().code == ErrorCode::kBadInput);
      return tokenizer.error().message;
    };
    directory.write(name, "");
    std::filesystem::resize_file(file, (64 << 20) + 1);  // sparse
    CHECK(refusal() == file.string() + ": is 64.0 MiB long, expected at most 64.0 MiB");
    std::filesystem::remove(file);
    std::filesystem::create_directory(file);
    CHECK(refusal() == file.string() + ": expected a regular file, found a directory");
    std::filesystem::remove(file);
    const std::string other = file.string() + ": expected a regular file, found a device, pipe or socket";
    REQUIRE(::mkfifo(file.c_str(), 0600) == 0);  // nobody writes: a reader that waits would wait for ever
    CHECK(refusal() == other);
    std::filesystem::remove(file);
    std::filesystem::create_symlink("/dev/zero", file);  // never ends
    CHECK(refusal() == other);
  }
}
