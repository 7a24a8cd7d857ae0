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

TEST_CASE("writing never throws") {
  Json json;
  json.set("bad", Json(std::string("a\xffz")));
  json.set("nan", Json(std::nan("")));
  CHECK(to_json_text(json) == "{\"bad\":\"a\xEF\xBF\xBDz\",\"nan\":null}");
}
