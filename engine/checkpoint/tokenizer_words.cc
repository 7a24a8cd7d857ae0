#include "engine/checkpoint/tokenizer_words.h"

#include "engine/checkpoint/unicode.h"

namespace cpuinfer::checkpoint {
namespace {

struct Char {
  char32_t code_point = 0;
  CharClass kind = CharClass::kOther;
  size_t bytes = 0;  // 0: the end of the text
};

Char char_at(std::string_view text, size_t offset) {
  if (offset >= text.size()) return {};
  const Utf8Char next = first_utf8_char(text.substr(offset));
  return {next.code_point, char_class(next.code_point), next.length};
}

bool is_white(const Char& c) { return c.bytes > 0 && (c.kind == CharClass::kSpace || c.kind == CharClass::kNewline); }

// End of the longest run of `kind` from `offset` on.
size_t run_end(std::string_view text, size_t offset, CharClass kind) {
  for (Char c = char_at(text, offset); c.bytes > 0 && c.kind == kind; c = char_at(text, offset)) offset += c.bytes;
  return offset;
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d): length of the match, or 0.
size_t contraction_bytes(std::string_view text) {
  if (text.size() < 2 || text[0] != '\'') return 0;
  const auto lower = [&](size_t i) -> char {
    if (i >= text.size()) return '\0';
    return text[i] >= 'A' && text[i] <= 'Z' ? static_cast<char>(text[i] - 'A' + 'a') : text[i];
  };
  switch (lower(1)) {
    case 's':
    case 't':
    case 'm':
    case 'd': return 2;
    case 'r':
    case 'v': return lower(2) == 'e' ? 3 : 0;
    case 'l': return lower(2) == 'l' ? 3 : 0;
    default:
      // U+017F, the long s, is an s without regard to case. No other code point beyond ASCII folds to these letters.
      return text.substr(1).starts_with("\xC5\xBF") ? 3 : 0;
  }
}

// \s*[\r\n]+|\s+(?!\S)|\s+ for a text that begins with white space.
size_t white_bytes(std::string_view text) {
  size_t end = 0;
  size_t last_start = 0;     // where the last character of the run begins
  size_t after_newline = 0;  // end of the last \r or \n in the run
  for (Char c = char_at(text, 0); is_white(c); c = char_at(text, end)) {
    last_start = end;
    end += c.bytes;
    if (c.kind == CharClass::kNewline) after_newline = end;
  }
  if (after_newline > 0) return after_newline;
  // The last space is left to the word that follows, if there is one and the run has another.
  return end == text.size() || last_start == 0 ? end : last_start;
}

}  // namespace

size_t first_word_bytes(std::string_view text) {
  if (const size_t bytes = contraction_bytes(text)) return bytes;
  const Char first = char_at(text, 0);
  if (first.kind == CharClass::kLetter) return run_end(text, 0, CharClass::kLetter);
  if (first.kind == CharClass::kNumber) return first.bytes;
  const Char second = char_at(text, first.bytes);
  const bool letters_follow = second.bytes > 0 && second.kind == CharClass::kLetter;
  if (letters_follow && first.kind != CharClass::kNewline) return run_end(text, first.bytes, CharClass::kLetter);
  const bool others_follow = second.bytes > 0 && second.kind == CharClass::kOther;
  if (first.kind == CharClass::kOther || (first.code_point == ' ' && others_follow))
    return run_end(text, run_end(text, first.bytes, CharClass::kOther), CharClass::kNewline);
  return white_bytes(text);
}

}  // namespace cpuinfer::checkpoint
