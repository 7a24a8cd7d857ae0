#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "engine/checkpoint/tokenizer_words.h"
#include "engine/checkpoint/unicode.h"

using namespace cpuinfer::checkpoint;

namespace {

std::vector<std::string> words(std::string_view text) {
  std::vector<std::string> found;
  while (!text.empty()) {
    const size_t bytes = first_word_bytes(text);
    REQUIRE(bytes > 0);
    REQUIRE(bytes <= text.size());
    found.emplace_back(text.substr(0, bytes));
    text.remove_prefix(bytes);
  }
  return found;
}

using Words = std::vector<std::string>;

}  // namespace

TEST_CASE("each maximal ill-formed subpart becomes one replacement character") {
  const std::string r(kReplacementCharacter);
  CHECK(replace_ill_formed("") == "");
  CHECK(replace_ill_formed("a\u00e9\u4eba\U0001f600") == "a\u00e9\u4eba\U0001f600");
  // The example of the Unicode standard, table 3-8.
  CHECK(replace_ill_formed("\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64") ==
        r + r + r + "b" + r + "c" + r + r + "d");
  CHECK(replace_ill_formed("\xC0\xAF") == r + r);
  CHECK(replace_ill_formed("\xE0\x80\x80") == r + r + r);
  CHECK(replace_ill_formed("\xED\xA0\x80") == r + r + r);
  CHECK(replace_ill_formed("\xF4\x90\x80\x80") == r + r + r + r);
  CHECK(replace_ill_formed("\xF4\x8F\xBF") == r);
  CHECK(replace_ill_formed("\xEF\xBF\xBD") == r);
  CHECK(replace_ill_formed(std::string_view("\0\xff\0", 3)) == std::string("\0", 1) + r + std::string("\0", 1));
}

TEST_CASE("every scalar value survives, and no surrogate") {
  int wrong = 0;
  for (char32_t c = 0; c < 0x110000; ++c) {
    std::string text;
    append_utf8(c, text);
    const Utf8Char read = first_utf8_char(text);
    const bool surrogate = c >= 0xD800 && c < 0xE000;
    if (surrogate ? read.kind == Utf8Char::Kind::kWellFormed
                  : read.kind != Utf8Char::Kind::kWellFormed || read.code_point != c || read.length != text.size())
      ++wrong;
    for (size_t cut = 1; !surrogate && cut < text.size(); ++cut) {
      const Utf8Char part = first_utf8_char(std::string_view(text).substr(0, cut));
      if (part.kind != Utf8Char::Kind::kIncomplete || part.length != cut) ++wrong;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("NFC composes, orders marks, and leaves what the reference leaves") {
  CHECK(nfc("e\u0301") == "\u00e9");
  CHECK(nfc("s\u0307\u0323") == "\u1e69");
  CHECK(nfc("\u212b\u2126\u212a") == "\u00c5\u03a9K");
  CHECK(nfc("\u0958") == "\u0915\u093c");  // excluded from composition
  CHECK(nfc("\u1112\u1161\u11ab") == "\ud55c");
  CHECK(nfc("\uac00\u11a7\u11a8") == "\uac00\u11a7\u11a8");  // utf8proc alone drops U+11A7
  CHECK(nfc("\u0301\u0323") == "\u0323\u0301");
  CHECK(nfc("q\u0898\u0334") == "q\u0898\u0334");  // U+0898 is a mark since Unicode 14
  CHECK(nfc("a\u0898\u0301") == "a\u0898\u0301");
  CHECK(nfc("\U00011935\U00011930") == "\U00011935\U00011930");  // compose since Unicode 13
  CHECK(nfc("\U00011938") == "\U00011938");
  CHECK(nfc("") == "");
}

TEST_CASE("NFC does not change its own results") {
  int wrong = 0;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text = "a";
    append_utf8(c, text);
    text += "\u0301\u0323";
    const std::string once = nfc(text);
    if (nfc(once) != once || replace_ill_formed(once) != once) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("classes follow the reference's regular expressions") {
  CHECK(char_class('a') == CharClass::kLetter);
  CHECK(char_class(0xAA) == CharClass::kLetter);
  CHECK(char_class(0x4E00) == CharClass::kLetter);
  CHECK(char_class(0x1C89) == CharClass::kLetter);   // since Unicode 16
  CHECK(char_class(0x2EBF0) == CharClass::kLetter);  // since Unicode 15.1
  CHECK(char_class('0') == CharClass::kNumber);
  CHECK(char_class(0xBD) == CharClass::kNumber);
  CHECK(char_class(0x3007) == CharClass::kNumber);
  CHECK(char_class('\r') == CharClass::kNewline);
  CHECK(char_class('\n') == CharClass::kNewline);
  for (const char32_t space : {0x09, 0x0B, 0x0C, 0x20, 0x85, 0xA0, 0x1680, 0x2000, 0x200A, 0x2028, 0x2029, 0x3000})
    CHECK(char_class(space) == CharClass::kSpace);
  for (const char32_t other : {0x00, 0x1C, 0x5F, 0x180E, 0x200B, 0x301, 0x378, 0xFEFF, 0x1F600, 0x10FFFF})
    CHECK(char_class(other) == CharClass::kOther);
}

TEST_CASE("words") {
  CHECK(words("Hello world") == Words{"Hello", " world"});
  CHECK(words("it's WE'LL 'x 's'") == Words{"it", "'s", " WE", "'LL", " '", "x", " '", "s", "'"});
  CHECK(words("a'\u017f 'r 'v 'l") == Words{"a", "'\u017f", " '", "r", " '", "v", " '", "l"});
  CHECK(words("'s") == Words{"'s"});
  CHECK(words("'") == Words{"'"});
  CHECK(words("a  b") == Words{"a", " ", " b"});
  CHECK(words("a  ") == Words{"a", "  "});
  CHECK(words("a \t1") == Words{"a", " ", "\t", "1"});
  CHECK(words("12a") == Words{"1", "2", "a"});
  CHECK(words("a\n\n  b") == Words{"a", "\n\n", " ", " b"});
  CHECK(words(" \n \n  x") == Words{" \n \n", " ", " x"});
  CHECK(words("x.\r\n\r\ny") == Words{"x", ".\r\n\r\n", "y"});
  CHECK(words(" ...!\nx") == Words{" ...!\n", "x"});
  CHECK(words("\tx\nx\u3000x") == Words{"\tx", "\n", "x", "\u3000x"});
  CHECK(words("(x) \u180ex") == Words{"(x", ")", " \u180e", "x"});
  CHECK(words("e\u0301x") == Words{"e", "\u0301x"});
}
