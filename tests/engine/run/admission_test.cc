#include "engine/run/admission.h"

#include <doctest/doctest.h>

#include <random>
#include <vector>

using namespace cpuinfer;
using namespace cpuinfer::run;

TEST_CASE("pages are promised until there are none, and promised again when they come back") {
  Admission admission(10, 256);
  CHECK(admission.admit(1024).value() == 4);
  CHECK(admission.admit(1025).value() == 5);
  CHECK(admission.admit(256).value() == 1);
  CHECK(admission.promised() == 10);
  CHECK(admission.sequences() == 3);
  CHECK(admission.admit(0).value() == 0);  // nothing is always there
  admission.release(0);

  const auto busy = admission.admit(300);
  REQUIRE_FALSE(busy);
  CHECK(busy.error().code == ErrorCode::kBusy);
  CHECK(busy.error().message ==
        "300 tokens (prompt and answer) need 2 KV pages of 256 tokens; 10 of 10 are promised to 3 other sequences: "
        "wait until one ends");
  CHECK(admission.sequences() == 3);  // a refusal changes nothing
  admission.release(1);
  CHECK(admission.admit(300).error().code == ErrorCode::kBusy);
  admission.release(4);
  CHECK(admission.admit(300).value() == 2);
  CHECK(admission.admit(2000).error().message ==
        "2000 tokens (prompt and answer) need 8 KV pages of 256 tokens; 7 of 10 are promised to 2 other sequences: "
        "wait until one ends");
}

TEST_CASE("what can never fit is another error than what must wait") {
  Admission admission(4, 256);
  const auto never = admission.admit(1025);
  REQUIRE_FALSE(never);
  CHECK(never.error().code == ErrorCode::kDoesNotFit);
  CHECK(never.error().message ==
        "1025 tokens (prompt and answer) need 5 KV pages of 256 tokens and the cache has 4 (1024 tokens); ask for a "
        "shorter answer, or start with a larger --ctx");
  CHECK(admission.admit(1024).value() == 4);
  CHECK(admission.admit(1025).error().code == ErrorCode::kDoesNotFit);
  CHECK(admission.admit(1).error().code == ErrorCode::kBusy);
  CHECK(admission.admit(1).error().message.ends_with("4 of 4 are promised to 1 other sequence: wait until one ends"));
  CHECK(Admission().admit(1).error().code == ErrorCode::kDoesNotFit);
  CHECK(Admission(4, 256).admit(int64_t{1} << 60).error().code == ErrorCode::kDoesNotFit);
}

TEST_CASE("whatever comes and goes, promises never exceed the pool and nobody waits for nothing") {
  std::mt19937 random(7);
  Admission admission(100, 256);
  std::vector<int64_t> living;
  int64_t promised = 0;
  for (int i = 0; i < 20000; ++i) {
    if (!living.empty() && random() % 3 == 0) {
      const size_t at = random() % living.size();
      promised -= living[at];
      admission.release(living[at]);
      living.erase(living.begin() + static_cast<int64_t>(at));
    } else {
      const int64_t pages = random() % 120;
      const auto admitted = admission.admit(pages * 256);
      REQUIRE(admitted.has_value() == (pages <= 100 - promised));
      if (admitted) {
        living.push_back(*admitted);
        promised += pages;
      } else {
        REQUIRE(admitted.error().code == (pages > 100 ? ErrorCode::kDoesNotFit : ErrorCode::kBusy));
      }
    }
    REQUIRE(admission.promised() == promised);
    REQUIRE(promised <= admission.pages());
    REQUIRE(admission.sequences() == static_cast<int>(living.size()));
  }
}
