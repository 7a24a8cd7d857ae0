#include "tools/progress.h"

#include <doctest/doctest.h>

#include <cmath>

using namespace cpuinfer::tools;

TEST_CASE("the time left counts that later tokens take longer") {
  // 1 ms for a token and a microsecond for each that it looks back on, which is 0.5e-6 n^2 in all.
  const auto seconds = [](double n) { return 1e-3 * n + 0.5e-6 * n * n; };
  Pace pace;
  CHECK(std::isinf(pace.seconds_left(1000)));
  constexpr double kTotal = 131072;
  for (double n = 512; n <= kTotal; n += 512) {
    pace.add(n, seconds(n));
    if (n < 4096) continue;
    CHECK(pace.seconds_left(kTotal) == doctest::Approx(seconds(kTotal) - seconds(n)).epsilon(0.02));
  }
}

TEST_CASE("work that keeps its pace, or gets faster, is not expected to get slower") {
  Pace even, faster;
  for (double n = 1; n <= 500; ++n) {
    even.add(n, n * 0.1);
    faster.add(n, std::sqrt(n));
  }
  CHECK(even.seconds_left(1000) == doctest::Approx(50));
  CHECK(faster.seconds_left(1000) == doctest::Approx(std::sqrt(500.0)));
  even.add(500, 60);  // nothing more was done
  CHECK(even.seconds_left(500) == doctest::Approx(0));
}
