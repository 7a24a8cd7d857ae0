#include "engine/checkpoint/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "base/check.h"

namespace cpuinfer::checkpoint {
namespace {

bool contains(std::span<const CodePointRange> ranges, char32_t code_point) {
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), code_point,
                                      [](char32_t value, const CodePointRange& range) { return value < range.first; });
  return after != ranges.begin() && code_point <= (after - 1)->last;
}

CharClass find_char_class(char32_t code_point) {
  if (code_point == '\r' || code_point == '\n') return CharClass::kNewline;
  // \s of Oniguruma in UTF-8: U+0009-000D, U+0085 and \p{Z}. U+180E was \p{Z} before Unicode 6.3.
  if ((code_point >= 0x09 && code_point <= 0x0D) || code_point == 0x20 || code_point == 0x85 || code_point == 0xA0 ||
      code_point == 0x1680 || (code_point >= 0x2000 && code_point <= 0x200A) || code_point == 0x2028 ||
      code_point == 0x2029 || code_point == 0x202F || code_point == 0x205F || code_point == 0x3000)
    return CharClass::kSpace;
  if (contains(kLetterRanges, code_point)) return CharClass::kLetter;
  if (contains(kNumberRanges, code_point)) return CharClass::kNumber;
  return CharClass::kOther;
}

constexpr size_t kSmall = 0x500;  // Latin, Greek and Cyrillic: one array access

// U+11A7 is one below the first final consonant of Hangul and composes with nothing, but utf8proc 2.8 takes it for
// "no final consonant" and swallows it after a syllable.
bool is_inert(char32_t code_point) {
  return code_point >= kSmall && (code_point == 0x11A7 || contains(kInertRanges, code_point));
}

int combining_class(int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;  // never null: unassigned has an entry
}

// utf8proc_map() and utf8proc_decompose() would do all this, but they sort marks by exchanging neighbours, which is
// quadratic in a run of marks (a prompt may hold a megabyte of them), and they know no inert code points.
class NfcWriter {
 public:
  void put(char32_t code_point) {
    if (code_point < 0xC0) {  // starters that do not decompose
      flush_marks();
      buffer_.push_back(static_cast<int32_t>(code_point));
      return;
    }
    if (is_inert(code_point)) {
      // Later characters compose with nothing before it: begin anew, with it as an opaque start.
      flush_marks();
      segment_starts_.push_back(buffer_.size());
      buffer_.push_back(static_cast<int32_t>(code_point));
      return;
    }
    int32_t parts[32];  // longest canonical decomposition: 4
    int boundary = 0;
    const auto count = utf8proc_decompose_char(static_cast<int32_t>(code_point), parts, 32, kOptions, &boundary);
    ENSURE(count > 0 && count <= 32, "a scalar value decomposes into a few code points");
    for (int i = 0; i < static_cast<int>(count); ++i) {
      const int mark_class = combining_class(parts[i]);
      if (mark_class == 0) {
        flush_marks();
        buffer_.push_back(parts[i]);
      } else {
        marks_.push_back({mark_class, marks_.size(), parts[i]});
      }
    }
  }

  std::string finish() {
    flush_marks();
    segment_starts_.push_back(buffer_.size());
    std::string text;
    text.reserve(buffer_.size());
    size_t begin = 0;
    for (const size_t end : segment_starts_) {
      const auto length =
          utf8proc_normalize_utf32(buffer_.data() + begin, static_cast<utf8proc_ssize_t>(end - begin), kOptions);
      ENSURE(length >= 0, "composing code points in memory cannot fail");
      for (size_t i = begin; i < begin + static_cast<size_t>(length); ++i)
        append_utf8(static_cast<char32_t>(buffer_[i]), text);
      begin = end;
    }
    return text;
  }

 private:
  static constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  struct Mark {
    int combining_class;
    size_t order;  // of writing, kept among marks of one class
    int32_t code_point;
  };

  void flush_marks() {
    if (marks_.empty()) return;
    // Not std::stable_sort, whose libstdc++ 12 form clang finds deprecated.
    std::sort(marks_.begin(), marks_.end(), [](const Mark& a, const Mark& b) {
      return a.combining_class != b.combining_class ? a.combining_class < b.combining_class : a.order < b.order;
    });
    for (const Mark& mark : marks_) buffer_.push_back(mark.code_point);
    marks_.clear();
  }

  std::vector<int32_t> buffer_;
  std::vector<size_t> segment_starts_;
  std::vector<Mark> marks_;  // the run of non-starters at the end, not yet in order
};

}  // namespace

Utf8Char first_utf8_char(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {Utf8Char::Kind::kWellFormed, lead, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Char::Kind::kIllFormed, 0xFFFD, 1};
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  char32_t code_point = lead & (0xFFu >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Char::Kind::kIncomplete, 0xFFFD, i};
    // The second byte excludes overlong forms, surrogates and values over U+10FFFF (Unicode 15, table 3-7).
    const unsigned low = i > 1 ? 0x80u : lead == 0xE0 ? 0xA0u : lead == 0xF0 ? 0x90u : 0x80u;
    const unsigned high = i > 1 ? 0xBFu : lead == 0xED ? 0x9Fu : lead == 0xF4 ? 0x8Fu : 0xBFu;
    if (byte(i) < low || byte(i) > high) return {Utf8Char::Kind::kIllFormed, 0xFFFD, i};
    code_point = code_point << 6 | (byte(i) & 0x3Fu);
  }
  return {Utf8Char::Kind::kWellFormed, code_point, length};
}

std::string replace_ill_formed(std::string_view text) {
  std::string clean;
  clean.reserve(text.size());
  while (!text.empty()) {
    const Utf8Char next = first_utf8_char(text);
    clean += next.kind == Utf8Char::Kind::kWellFormed ? text.substr(0, next.length) : kReplacementCharacter;
    text.remove_prefix(next.length);
  }
  return clean;
}

void append_utf8(char32_t code_point, std::string& text) {
  const auto put = [&](char32_t byte) { text.push_back(static_cast<char>(static_cast<unsigned char>(byte))); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  } else {
    put(0xF0 | code_point >> 18);
    put(0x80 | (code_point >> 12 & 0x3F));
    put(0x80 | (code_point >> 6 & 0x3F));
    put(0x80 | (code_point & 0x3F));
  }
}

std::string nfc(std::string_view text) {
  // Nothing below U+0300 (CC 80) changes, alone or together: most prompts end here.
  if (std::none_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) >= 0xCC; }))
    return std::string(text);
  NfcWriter writer;
  while (!text.empty()) {
    const Utf8Char next = first_utf8_char(text);
    ENSURE(next.kind == Utf8Char::Kind::kWellFormed, "nfc() takes well-formed UTF-8");
    writer.put(next.code_point);
    text.remove_prefix(next.length);
  }
  return writer.finish();
}

CharClass char_class(char32_t code_point) {
  static const auto kSmallClasses = [] {
    std::array<CharClass, kSmall> classes{};
    for (size_t i = 0; i < kSmall; ++i) classes[i] = find_char_class(static_cast<char32_t>(i));
    return classes;
  }();
  return code_point < kSmall ? kSmallClasses[code_point] : find_char_class(code_point);
}

}  // namespace cpuinfer::checkpoint
