#include "engine/run/stop_strings.h"

#include <doctest/doctest.h>

using cpuinfer::run::StopStrings;

TEST_CASE("text flows through while nothing can match") {
  StopStrings stop({"END"});
  CHECK(stop.push("hello ") == "hello ");
  CHECK(stop.push("world") == "world");
  CHECK(stop.finish() == "");
  CHECK_FALSE(stop.found());
}

TEST_CASE("a tail that may become a stop string is held back, then shown or dropped") {
  StopStrings stop({"END", "\n\n"});
  CHECK(stop.push("an E") == "an ");
  CHECK(stop.push("N") == "");
  CHECK(stop.push("X E") == "ENX ");
  CHECK(stop.finish() == "E");
  CHECK(stop.push("a\n") == "a");
  CHECK(stop.push("\nb") == "");
  CHECK(stop.found());
  CHECK(stop.push("more") == "");
}

TEST_CASE("the earliest of several matches counts, also across pieces") {
  StopStrings stop({"bcd", "ab"});
  CHECK(stop.push("xxa") == "xx");
  CHECK(stop.push("bcd") == "");
  CHECK(stop.found());
}

TEST_CASE("overlapping beginnings") {
  StopStrings stop({"aab"});
  CHECK(stop.push("aaa") == "a");
  CHECK(stop.push("b!") == "");
  CHECK(stop.found());
}

TEST_CASE("no strings, empty strings") {
  StopStrings stop({"", ""});
  CHECK(stop.push("abc") == "abc");
  CHECK_FALSE(stop.found());
}
