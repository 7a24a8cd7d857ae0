// How thoughts are shown, however the text is cut.
#include "tools/answer.h"

#include <doctest/doctest.h>

#include <string>

using cpuinfer::tools::ThoughtStyle;

namespace {

std::string shown(const std::string& text, bool color, size_t piece) {
  ThoughtStyle style(color);
  std::string out;
  for (size_t at = 0; at < text.size(); at += piece) out += style.push(text.substr(at, piece));
  return out + style.finish();
}

void check_all_pieces(const std::string& text, bool color, const std::string& expected) {
  for (size_t piece = 1; piece <= text.size() + 1; ++piece) {
    INFO(text << " in pieces of " << piece);
    CHECK(shown(text, color, piece) == expected);
  }
}

}  // namespace

TEST_CASE("plain answers stay as they are") {
  for (const bool color : {false, true}) {
    check_all_pieces("Hello", color, "Hello");
    check_all_pieces("a < b, <thin>, <think", color, "a < b, <thin>, <think");
    check_all_pieces("<thin ice>", color, "<thin ice>");
    check_all_pieces(" \n<b>", color, " \n<b>");
  }
}

TEST_CASE("an empty thought at the beginning is left out") {
  for (const bool color : {false, true}) {
    check_all_pieces("<think>\n\n</think>\n\nHello", color, "Hello");
    check_all_pieces("<think></think>Hello", color, "Hello");
    check_all_pieces("<think>\n</think>\n", color, "");
  }
}

TEST_CASE("a thought is dim where colours are on") {
  const std::string text = "<think>\nHm. </thin\n</think>\n\nYes.";
  check_all_pieces(text, false, text);
  check_all_pieces(text, true, "\033[2m<think>\nHm. </thin\n</think>\033[0m\n\nYes.");
  check_all_pieces("A<think>b</think>c", true, "A\033[2m<think>b</think>\033[0mc");
}

TEST_CASE("an answer that ends within a thought ends dimness too") {
  check_all_pieces("<think>\nHm", true, "\033[2m<think>\nHm\033[0m");
  check_all_pieces("<think>\nHm </thi", true, "\033[2m<think>\nHm </thi\033[0m");
  check_all_pieces("<think>\n", false, "<think>\n");
}
