#include "numa/cpu_list.h"

#include <doctest/doctest.h>

using cpuinfer::numa::list_text;
using cpuinfer::numa::parse_list;

TEST_CASE("lists as Linux and taskset write them") {
  CHECK(parse_list("0") == std::vector<int>{0});
  CHECK(parse_list("0-3,8\n") == std::vector<int>{0, 1, 2, 3, 8});
  CHECK(parse_list("8,0-2,1") == std::vector<int>{0, 1, 2, 8});
  CHECK(parse_list("0-6:2,7") == std::vector<int>{0, 2, 4, 6, 7});
  CHECK(parse_list("1-1") == std::vector<int>{1});
  CHECK(parse_list("") == std::vector<int>{});
  CHECK(parse_list("\n") == std::vector<int>{});
  for (const char* wrong : {",", "1,", ",1", "1,,2", "3-1", "-1", "1-", "a", "1;2", "0-4:0", "0-4:", "65536", "0x3",
                            "1 2", "99999999999", "--"}) {
    INFO(wrong);
    CHECK_FALSE(parse_list(wrong).has_value());
  }
}

TEST_CASE("numbers as a list") {
  CHECK(list_text(std::vector<int>{}) == "none");
  CHECK(list_text(std::vector<int>{4}) == "4");
  CHECK(list_text(std::vector<int>{0, 1, 2, 3, 8, 10, 11}) == "0-3,8,10-11");
}
