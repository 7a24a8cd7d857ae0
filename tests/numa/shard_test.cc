#include "numa/shard.h"

#include <doctest/doctest.h>

using cpuinfer::numa::Range;
using cpuinfer::numa::split;

static_assert(split(10, 4, 0) == Range{0, 3});
static_assert(split(10, 4, 1) == Range{3, 6});
static_assert(split(10, 4, 2) == Range{6, 8});
static_assert(split(10, 4, 3) == Range{8, 10});
static_assert(split(2, 3, 2) == Range{2, 2});

TEST_CASE("split covers everything once, in order, as evenly as whole items allow") {
  for (int64_t count = 0; count <= 130; ++count) {
    for (int parts = 1; parts <= 40; ++parts) {
      int64_t next = 0;
      int64_t previous = count + 1;
      for (int part = 0; part < parts; ++part) {
        const Range range = split(count, parts, part);
        REQUIRE(range.begin == next);
        REQUIRE((range.count() == count / parts || range.count() == count / parts + 1));
        REQUIRE(range.count() <= previous);  // the remainder goes to the first parts
        next = range.end;
        previous = range.count();
      }
      REQUIRE(next == count);
    }
  }
}

TEST_CASE("split does not overflow on byte counts") {
  const int64_t bytes = int64_t{1} << 60;
  CHECK(split(bytes + 5, 7, 6).end == bytes + 5);
}
