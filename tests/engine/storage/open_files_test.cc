#include "engine/storage/open_files.h"

#include <doctest/doctest.h>
#include <sys/resource.h>

using namespace cpuinfer;
using namespace cpuinfer::storage;

TEST_CASE("the limit of open files is raised as far as the system lets it") {
  rlimit limit;
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &limit) == 0);
  limit.rlim_max = 2000;
  limit.rlim_cur = 100;
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &limit) == 0);
  CHECK(allow_open_files(10));
  CHECK(allow_open_files(500));
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &limit) == 0);
  CHECK(limit.rlim_cur == 1012);
  const auto refused = allow_open_files(5000);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ErrorCode::kDoesNotFit);
  CHECK(refused.error().message ==
        "5512 files must be open at a time and this process may have 2000: raise the limit (ulimit -Hn, or "
        "LimitNOFILE= of the service)");
}
