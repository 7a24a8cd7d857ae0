#include "base/json.h"

#include <doctest/doctest.h>

#include <cmath>
#include <string>

using namespace cpuinfer;

TEST_CASE("values keep their kinds") {
  const auto json = parse_json(R"({"a":1,"b":2.5,"c":[true,null,"x"],"d":18446744073709551615})", "test");
  REQUIRE(json);
  CHECK(json->find("a")->as_int() == 1);
  CHECK(json->find("b")->as_double() == 2.5);
  CHECK(json->find("c")->as_array().size() == 3);
  CHECK_FALSE(json->find("d")->is_int());
  CHECK(json->find("missing") == nullptr);
  CHECK(to_json_text(*json) == R"({"a":1,"b":2.5,"c":[true,null,"x"],"d":1.8446744073709552e+19})");
}

TEST_CASE("hostile text is refused with a sentence") {
  const std::string deep = std::string(100000, '[');
  CHECK(parse_json(deep, "f").error().message == "f: nested deeper than 64 levels");
  CHECK(parse_json(R"({"a":1,"a":2})", "f").error().message == R"(f: member "a" appears twice in one object)");
  CHECK(parse_json("{\"a\":\"\xff\"}", "f").error().message.find("ill-formed UTF-8") != std::string::npos);
  CHECK_FALSE(parse_json("{} x", "f"));
  CHECK_FALSE(parse_json("", "f"));
  CHECK_FALSE(parse_json("1e999", "f"));
  CHECK(parse_json("{", "f").error().code == ErrorCode::kBadInput);
}

TEST_CASE("the number of values is bounded, whatever their kind") {
  const std::string_view text = R"({"a":[1,2.5,"x",null,true],"b":{},"c":[]})";  // 9 with the three containers and b, c
  CHECK(parse_json(text, "f", {.values = 9}));
  const auto more = parse_json(text, "f", {.values = 8});
  REQUIRE_FALSE(more);
  CHECK(more.error().code == ErrorCode::kBadInput);
  CHECK(more.error().message == "f: has more than 8 values, the most that are read from one text");
  CHECK(parse_json("7", "f", {.values = 1}));
  CHECK_FALSE(parse_json("7", "f", {.values = 0}));

  // The default.
  std::string zeros = "[";
  for (int i = 0; i < 1'999'998; ++i) zeros += "0,";
  CHECK(parse_json(zeros + "0]", "f")->as_array().size() == 1'999'999);
  CHECK(parse_json(zeros + "0,0]", "f").error().message ==
        "f: has more than 2000000 values, the most that are read from one text");
}

TEST_CASE("writing never throws") {
  Json json;
  json.set("bad", Json(std::string("a\xffz")));
  json.set("nan", Json(std::nan("")));
  CHECK(to_json_text(json) == "{\"bad\":\"a\xEF\xBF\xBDz\",\"nan\":null}");
}
