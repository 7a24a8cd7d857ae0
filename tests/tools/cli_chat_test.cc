// The chat on a terminal, typed as people type.
#include <doctest/doctest.h>

#include "tests/tools/process.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;

namespace {

Arguments chat(Arguments rest = {}) {
  Arguments all = {"-m", tiny_model()};
  all.insert(all.end(), rest.begin(), rest.end());
  return all;
}

}  // namespace

TEST_CASE("a conversation") {
  Terminal terminal(chat({"-n", "8"}));
  REQUIRE(terminal.expect("sampling  greedy"));
  REQUIRE(terminal.expect("/? lists the commands, Ctrl-D leaves"));
  REQUIRE(terminal.expect(">>> "));
  terminal.type("Hello\n");
  REQUIRE(terminal.expect("answer 8 tokens"));
  CHECK(terminal.expect("; length"));
  REQUIRE(terminal.expect(">>> "));
  // The second turn computes only what is new.
  terminal.type("And now?\n");
  REQUIRE(terminal.expect(" from cache)"));
  REQUIRE(terminal.expect(">>> "));
  terminal.type("/tokens\n");
  CHECK(terminal.expect(" of 4096 tokens of the context are used"));
  terminal.type("/clear\n");
  CHECK(terminal.expect("the conversation is forgotten"));
  terminal.type("/tokens\n");
  CHECK(terminal.expect("0 of 4096 tokens"));
  terminal.type("\n   \n/?\n");
  CHECK(terminal.expect("/set nothink"));
  terminal.type("/nonsense\n");
  CHECK(terminal.expect("unknown command '/nonsense'; /? lists the commands"));
  terminal.type("/bye\n");
  CHECK(terminal.finish() == 0);
}

TEST_CASE("a chat has the scaling of its whole context, also after /clear") {
  Terminal terminal(chat({"-n", "2", "--rope-scaling", "auto", "--ctx", "16k"}));
  REQUIRE(terminal.expect(
      "rope      yarn factor 4 of 4096 for this sequence (all turns, the whole context = 16384 tokens)"));
  REQUIRE(terminal.expect(">>> "));
  terminal.type("/clear\n");
  REQUIRE(terminal.expect(">>> "));
  terminal.type("Hello\n");
  CHECK(terminal.expect("answer 2 tokens"));
  terminal.type("/bye\n");
  CHECK(terminal.finish() == 0);
}

TEST_CASE("Ctrl-D leaves") {
  Terminal terminal(chat());
  REQUIRE(terminal.expect(">>> "));
  terminal.type("\x04");
  CHECK(terminal.finish() == 0);
}

TEST_CASE("the same turns give the same answers, whatever was computed before") {
  const auto second_answer = [](bool detour) {
    Terminal terminal(chat({"-n", "12"}));
    REQUIRE(terminal.expect(">>> "));
    if (detour) {
      terminal.type("Something else altogether\n");
      REQUIRE(terminal.expect(">>> "));
      terminal.type("/clear\n");
      REQUIRE(terminal.expect(">>> "));
    }
    terminal.type("What is this?\n");
    REQUIRE(terminal.expect("What is this?\r\n"));
    const size_t start = terminal.screen().rfind("What is this?\r\n");
    REQUIRE(terminal.expect("; length"));
    const std::string& screen = terminal.screen();
    return screen.substr(start, screen.find("prompt ", start) - start);
  };
  CHECK(second_answer(false) == second_answer(true));
}

TEST_CASE("texts of several lines, thinking and the system message") {
  Terminal terminal(chat({"-n", "3"}));
  REQUIRE(terminal.expect(">>> "));
  terminal.type("\"\"\"first\n");
  REQUIRE(terminal.expect("... "));
  terminal.type("second\"\"\"\n");
  REQUIRE(terminal.expect("answer 3 tokens"));
  terminal.type("/set nothink\n");
  CHECK(terminal.expect("the model answers at once"));
  terminal.type("/set think\n");
  CHECK(terminal.expect("the model may think before it answers"));
  terminal.type("/set system Be brief.\n");
  CHECK(terminal.expect("the system message is set"));
  terminal.type("/set system\n");
  CHECK(terminal.expect("no system message"));
  terminal.type("/bye\n");
  CHECK(terminal.finish() == 0);
}

TEST_CASE("Ctrl-C at the prompt: once is a hint, twice leaves") {
  Terminal terminal(chat());
  REQUIRE(terminal.expect(">>> "));
  terminal.type("half a li\x03");
  REQUIRE(terminal.expect("Ctrl-C again, Ctrl-D or /bye leaves"));
  REQUIRE(terminal.expect(">>> "));
  terminal.type("\x03");
  CHECK(terminal.finish() == 130);
}

TEST_CASE("Ctrl-C stops the answer and the chat goes on") {
  // Without a limit the answer takes all of the context, slowly.
  Terminal terminal(chat({"--isa", "reference", "-t", "1"}));
  REQUIRE(terminal.expect(">>> "));
  terminal.type("Hello\n");
  REQUIRE(terminal.expect("Hello\r\n"));
  REQUIRE(terminal.expect_more(20));
  terminal.type("\x03");
  REQUIRE(terminal.expect("; interrupted"));
  REQUIRE(terminal.expect(">>> "));
  terminal.type("/tokens\n");
  CHECK(terminal.expect(" tokens of the context are used"));
  terminal.type("/bye\n");
  CHECK(terminal.finish() == 0);
}

TEST_CASE("a turn that does not fit is refused, the conversation stays") {
  Terminal terminal(chat({"--ctx", "64", "-n", "4"}));
  REQUIRE(terminal.expect(">>> "));
  std::string text;
  for (int i = 0; i < 100; ++i) text += "word ";
  terminal.type(text + "\n");
  REQUIRE(terminal.expect("and the context 64: no room for an answer"));
  CHECK(terminal.expect("or /clear"));
  terminal.type("Hi\n");
  REQUIRE(terminal.expect("answer "));
  terminal.type("/bye\n");
  CHECK(terminal.finish() == 0);
}

TEST_CASE("a quiet chat still answers commands and reports errors") {
  Terminal terminal(chat({"-q", "--ctx", "64", "-n", "4"}));
  REQUIRE(terminal.expect(">>> "));
  terminal.type("/tokens\n");
  CHECK(terminal.expect("0 of 64 tokens of the context are used"));
  terminal.type("/nonsense\n");
  CHECK(terminal.expect("unknown command '/nonsense'"));
  std::string text;
  for (int i = 0; i < 100; ++i) text += "word ";
  terminal.type(text + "\n");
  CHECK(terminal.expect("no room for an answer"));
  terminal.type("/bye\n");
  CHECK(terminal.finish() == 0);
}

TEST_CASE("a quoted text that begins with a slash is a turn, not a command") {
  Terminal terminal(chat({"-n", "4"}));
  REQUIRE(terminal.expect(">>> "));
  terminal.type("\"\"\"/bye\nis a command\"\"\"\n");
  REQUIRE(terminal.expect("answer 4 tokens"));
  terminal.type("/bye\n");
  CHECK(terminal.finish() == 0);
}

TEST_CASE("--json needs a prompt") {
  Terminal terminal(chat({"--json"}));
  CHECK(terminal.expect("--json and --raw need a prompt"));
  CHECK(terminal.finish() == 2);
}
