#include "base/text.h"

#include <doctest/doctest.h>

#include <string>

using namespace cpuinfer;

TEST_CASE("foreign text in quotes") {
  CHECK(in_quotes("") == R"("")");
  CHECK(in_quotes("a \"b\"\n\x01") == R"("a \"b\"\n\u0001")");
  CHECK(in_quotes("a\xffz") == "\"a\xEF\xBF\xBDz\"");
  CHECK(in_quotes(std::string(100, 'x')) == '"' + std::string(100, 'x') + '"');
  CHECK(in_quotes(std::string(101, 'x')) == '"' + std::string(100, 'x') + "...\"");
  CHECK(in_quotes("abcd", 3) == "\"abc...\"");
  CHECK(in_quotes("\u00e9\u00e9", 3) == "\"\u00e9\uFFFD...\"");  // cut within a character
}

TEST_CASE("values of a JSON file") {
  const auto of = [](const Json& value) { return shown(&value); };
  CHECK(shown(nullptr) == "nothing");
  CHECK(of(nullptr) == "null");
  CHECK(of(true) == "true");
  CHECK(of(-3) == "-3");
  CHECK(of(0.5) == "0.5");
  CHECK(of("a\nb") == R"("a\nb")");
  CHECK(of(std::string(1 << 20, 'x')) == '"' + std::string(100, 'x') + "...\"");
  CHECK(of(Json::Array{1}) == "an array");
  CHECK(of(Json::Object{}) == "an object");
}

TEST_CASE("edit distance") {
  CHECK(edit_distance("", "") == 0);
  CHECK(edit_distance("abc", "") == 3);
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("same", "same") == 0);
  CHECK(edit_distance("kitten", "sitting") == 3);
  CHECK(edit_distance("ab", "ba") == 1);  // a swap is one edit
  CHECK(edit_distance("--tmep", "--temp") == 1);
  CHECK(edit_distance("abcd", "badc") == 2);
  CHECK(edit_distance("ca", "abc") == 3);  // optimal string alignment; 2 with edits inside a swap
}
