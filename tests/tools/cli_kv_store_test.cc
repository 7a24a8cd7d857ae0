// Prompts from a KV store, prompts that were interrupted, and conversations in files, as users meet them.
#include <doctest/doctest.h>
#include <signal.h>
#include <unistd.h>

#include <fstream>

#include "tests/tools/process.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;
namespace fs = std::filesystem;

namespace {

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

// A new directory for a store.
std::string new_store() {
  static int count = 0;
  return (scratch_directory() / ("kv" + std::to_string(count++))).string();
}

std::string long_text(int words) {
  std::string text;
  for (int i = 0; i < words; ++i) text += " word " + std::to_string(i % 7);
  return text;
}

Outcome run_tiny(Arguments rest) {
  Arguments all = {"-m", tiny_model(), "--raw", "--greedy", "-n", "8", "--prompt", long_text(300)};
  all.insert(all.end(), rest.begin(), rest.end());
  return run_cpuinfer(all);
}

// Slow enough to be interrupted.
Arguments slow_run(const std::string& store) {
  return {"-m", tiny_model(), "--raw",   "--greedy", "-n",    "8",         "--prompt",   long_text(600),
          "-t", "1",          "--chunk", "16",       "--isa", "reference", "--kv-store", store};
}

size_t page_count(const std::string& store) {
  size_t count = 0;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(fs::path(store) / "pages", ignored))
    count += entry.path().extension().empty() ? 1 : 0;
  return count;
}

void wait_for_pages(const std::string& store, size_t count) {
  for (int waits = 0; page_count(store) < count; ++waits) {
    REQUIRE(waits < 6000);
    ::usleep(10'000);
  }
}

}  // namespace

TEST_CASE("a stored prompt is not computed again, and the answer is the same") {
  const std::string store = new_store();
  const Outcome without = run_tiny({}), first = run_tiny({"--kv-store", store}),
                second = run_tiny({"--kv-store", store});
  REQUIRE_MESSAGE(without.exit_code == 0, without.err);
  REQUIRE_MESSAGE(first.exit_code == 0, first.err);
  CHECK(first.out == without.out);
  CHECK_FALSE(contains(first.err, "KV store"));
  CHECK(second.out == without.out);
  CHECK(contains(second.err, " from the KV store in "));
  const Outcome json = run_tiny({"--kv-store", store, "--json"});
  CHECK(contains(json.out, "\"cached_tokens\":0,\"stored_tokens\":"));
  CHECK_FALSE(contains(json.out, "\"stored_tokens\":0"));
}

TEST_CASE("SIGTERM or Ctrl-C during prefill keeps what is done: exit 75, and the same command goes on") {
  for (const int number : {SIGTERM, SIGINT}) {
    const std::string store = new_store();
    Outcome interrupted;
    {
      Process process(slow_run(store));
      wait_for_pages(store, 2);
      process.signal(number);
      interrupted = process.finish();
    }
    INFO(interrupted.err);
    CHECK(interrupted.exit_code == 75);
    CHECK(interrupted.out.empty());
    CHECK(contains(interrupted.err, " of them are kept in " + store + ", the same command goes on there"));
    const Outcome again = run_cpuinfer(slow_run(store));
    CHECK(again.exit_code == 0);
    CHECK(contains(again.err, " from the KV store in "));
    CHECK(again.out == run_cpuinfer(slow_run(new_store())).out);
  }
}

TEST_CASE("kill -9 during prefill: the same command goes on") {
  const std::string store = new_store();
  {
    Process process(slow_run(store));
    wait_for_pages(store, 2);
    process.signal(SIGKILL);
    CHECK(process.finish().killed_by_signal);
  }
  const Outcome again = run_cpuinfer(slow_run(store));
  CHECK(again.exit_code == 0);
  CHECK(contains(again.err, " from the KV store in "));
}

TEST_CASE("stores that cannot be had are refused before anything is loaded") {
  const auto refused = [](Arguments rest, int code, const char* message) {
    const Outcome outcome = run_tiny(std::move(rest));
    INFO(outcome.err);
    CHECK(outcome.exit_code == code);
    CHECK(contains(outcome.err, message));
    CHECK(outcome.out.empty());
  };
  refused({"--kv-store-size", "1GiB"}, 2, "give its directory with --kv-store");
  refused({"--kv-tier", "disk"}, 2, "--kv-tier disk keeps pages in a KV store");
  refused({"--kv-store", new_store(), "--kv-store-size", "1KiB"}, 2, "one page of 256 tokens of this model takes");
  const fs::path letters = new_store();
  fs::create_directory(letters);
  std::ofstream(letters / "letter.txt") << "dear";
  refused({"--kv-store", letters.string()}, 78, "is not empty and no KV store");
  const std::string file = new_store();
  std::ofstream(file) << "text";
  refused({"--kv-store", file}, 66, "cannot make the directory of the KV store");
  const std::string busy = new_store();
  Process holder(slow_run(busy));
  wait_for_pages(busy, 1);
  refused({"--kv-store", busy}, 1, "another process uses this KV store");
  holder.signal(SIGKILL);
  holder.finish();
}

TEST_CASE("--kv-tier disk: a context larger than memory gives the same answer, and its speed is said first") {
  // 24 layers of 4 kv heads of 64: 6 MiB for each page of 256 tokens, 384 MiB for 16384 tokens.
  const auto config = scratch_directory() / "wide.json";
  write_file(config, R"({"architectures":["Qwen3ForCausalLM"],"model_type":"qwen3","num_hidden_layers":24,
    "hidden_size":64,"num_attention_heads":4,"num_key_value_heads":4,"head_dim":64,"intermediate_size":64,
    "vocab_size":1536,"max_position_embeddings":16384,"rope_theta":10000.0,"rms_norm_eps":1e-6,
    "tie_word_embeddings":true})");
  const std::string model = (scratch_directory() / "wide").string();
  const Outcome made = run_cpuinfer({"synth", "--config", config.string(), "-o", model, "--tokenizer",
                                     CPUINFER_SOURCE_DIR "/tests/data/tokenizer/small"});
  REQUIRE_MESSAGE(made.exit_code == 0, made.err);
  const auto ask = [&](Arguments rest) {
    Arguments all = {"-m", model, "--raw", "--greedy", "-n", "8", "--ctx", "16384", "--prompt", long_text(2000)};
    all.insert(all.end(), rest.begin(), rest.end());
    return run_cpuinfer(all);
  };
  const Outcome expected = ask({});
  REQUIRE_MESSAGE(expected.exit_code == 0, expected.err);
  const Outcome refused = ask({"--memory-limit", "500MiB"});
  CHECK(refused.exit_code == 78);
  CHECK(contains(refused.err, "--kv-tier disk"));
  const Outcome cold = ask({"--memory-limit", "500MiB", "--kv-tier", "disk", "--kv-store", new_store()});
  REQUIRE_MESSAGE(cold.exit_code == 0, cold.err);
  CHECK(cold.out == expected.out);
  CHECK(contains(cold.err, " more on disk, read again for every token"));
  CHECK(contains(cold.err, "kv tier   "));
  CHECK(contains(cold.err, " tokens/s at the most"));
  CHECK(contains(cold.err, " GB of keys and values from disk, "));

  // Weights from disk too.
  const std::string packed = (scratch_directory() / "wide-packed").string();
  const Outcome pack = run_cpuinfer({"pack", "-m", model, "-o", packed});
  REQUIRE_MESSAGE(pack.exit_code == 0, pack.err);
  const Outcome both =
      run_cpuinfer({"-m", packed, "--raw", "--greedy", "-n", "8", "--ctx", "16384", "--prompt", long_text(2000),
                    "--memory-limit", "500MiB", "--kv-tier", "disk", "--kv-store", new_store(), "--weights", "stream"});
  REQUIRE_MESSAGE(both.exit_code == 0, both.err);
  CHECK(both.out == expected.out);
  CHECK(contains(both.err, " GB of keys and values from disk, "));
}

TEST_CASE("bench store: the same bits from disk and memory, with figures") {
  const std::string store = new_store();
  const Arguments bench = {"bench", "store", "-m", tiny_model(), "--kv-store", store, "--prefix", "512,1k", "--quick"};
  const Outcome outcome = run_cpuinfer(bench);
  REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
  CHECK(contains(outcome.out, "seconds to the first token after a prefix"));
  CHECK(contains(outcome.out, "same\n"));
  CHECK_FALSE(contains(outcome.out, "DIFFERENT"));
  CHECK(contains(outcome.out, "GB/s while pages were on their way"));
  const Outcome again = run_cpuinfer(bench);
  CHECK(again.exit_code == 2);
  CHECK(contains(again.err, "give an empty directory"));
  const Outcome json = run_cpuinfer(
      {"bench", "store", "--synthetic", "tiny", "--kv-store", new_store(), "--prefix", "512", "--quick", "--json"});
  REQUIRE_MESSAGE(json.exit_code == 0, json.err);
  CHECK(contains(json.out, "\"same_bits\": true"));
  const auto refused = [](Arguments arguments, const char* message) {
    const Outcome bad = run_cpuinfer(arguments);
    CHECK(bad.exit_code == 2);
    CHECK_MESSAGE(contains(bad.err, message), bad.err);
  };
  refused({"bench", "store", "--synthetic", "tiny"}, "no store: give --kv-store");
  refused({"bench", "store", "--kv-store", new_store()}, "give either --model or --synthetic NAME");
  refused({"bench", "store", "-m", tiny_model(), "--layers", "2", "--kv-store", new_store()}, "--layers changes");
}

TEST_CASE("a conversation is saved and loaded with its keys and values") {
  const std::string store = new_store(), file = (scratch_directory() / "talk.json").string();
  const Arguments chat = {"-m", tiny_model(), "-n", "8", "--kv-store", store};
  {
    Terminal terminal(chat);
    REQUIRE(terminal.expect(">>> "));
    terminal.type("/set system Be brief.\n");
    terminal.type("Hello\n");
    REQUIRE(terminal.expect("; length"));
    terminal.type("/save " + file + "\n");
    REQUIRE(terminal.expect("saved     2 messages"));
    CHECK(terminal.expect("their keys and values to the KV store"));
    terminal.type("/save /nowhere/at/all\n");
    CHECK(terminal.expect("/nowhere/at/all"));
    terminal.type("/load " + file + ".missing\n");
    CHECK(terminal.expect(".missing"));
    terminal.type("/save\n");
    CHECK(terminal.expect("/save needs the name of a file"));
    terminal.type("/bye\n");
    CHECK(terminal.finish() == 0);
  }
  Terminal terminal(chat);
  REQUIRE(terminal.expect(">>> "));
  terminal.type("/load " + file + "\n");
  REQUIRE(terminal.expect("restored  2 messages, "));
  REQUIRE(terminal.expect(" tokens\r\n"));
  terminal.type("And now?\n");
  REQUIRE(terminal.expect(" from cache)"));
  terminal.type("/bye\n");
  CHECK(terminal.finish() == 0);
  // Nothing of it was computed again: all tokens that the file names were found.
  const std::string& screen = terminal.screen();
  const size_t at = screen.find("restored  2 messages, ") + std::string_view("restored  2 messages, ").size();
  const std::string count = screen.substr(at, screen.find(' ', at) - at);
  CHECK(contains(screen, count + " of " + count + " tokens"));
}

TEST_CASE("--session goes on where the last answer ended, with and without a store") {
  for (const bool stored : {true, false}) {
    const std::string file = (scratch_directory() / (stored ? "stored.json" : "plain.json")).string();
    Arguments arguments = {"-m", tiny_model(), "--greedy", "-n", "8", "--session", file};
    if (stored) arguments.insert(arguments.end(), {"--kv-store", new_store()});
    const auto ask = [&](const std::string& question) {
      Arguments all = arguments;
      all.insert(all.end(), {"--prompt", question});
      return run_cpuinfer(all);
    };
    const Outcome first = ask("Hello");
    REQUIRE_MESSAGE(first.exit_code == 0, first.err);
    CHECK(contains(first.err, stored ? "their keys and values to the KV store"
                                     : "without --kv-store their tokens are computed again"));
    const Outcome second = ask("And now?");
    REQUIRE_MESSAGE(second.exit_code == 0, second.err);
    CHECK(contains(second.err, "restored  2 messages"));
    CHECK(contains(second.err, "; the rest is computed with the next question") == !stored);
    CHECK(contains(read_file(file), "And now?"));
    // A chat begins with it too.
    Terminal terminal(arguments);
    REQUIRE(terminal.expect("restored  4 messages"));
    terminal.type("Bye\n");
    REQUIRE(terminal.expect("saved     6 messages"));
    terminal.type("/bye\n");
    CHECK(terminal.finish() == 0);
  }
}

TEST_CASE("a session longer than the next prompt and answer goes on all the same") {
  const std::string file = (scratch_directory() / "long.json").string(), store = new_store();
  const auto ask = [&](const std::string& question, const char* most) {
    return run_cpuinfer(
        {"-m", tiny_model(), "--greedy", "-n", most, "--session", file, "--kv-store", store, "--prompt", question});
  };
  REQUIRE(ask(long_text(60), "100").exit_code == 0);
  // Tokens that the messages do not account for, as those of thoughts.
  const std::string text = read_file(file);
  write_file(file, R"({"format":"cpuinfer conversation","version":1,"model":"tiny","messages":[
    {"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}],)" +
                       text.substr(text.rfind("\"tokens\"")));
  const Outcome second = ask("And now?", "4");
  INFO(second.err);
  CHECK(second.exit_code == 0);
}

TEST_CASE("files that are no conversation are refused with what is wrong") {
  const std::string file = (scratch_directory() / "bad.json").string();
  const auto refused = [&](const char* text, const char* message) {
    write_file(file, text);
    const Outcome outcome = run_cpuinfer({"-m", tiny_model(), "-n", "2", "--session", file, "--prompt", "Hello"});
    INFO(outcome.err);
    CHECK(outcome.exit_code == 78);
    CHECK(contains(outcome.err, message));
    CHECK(read_file(file) == text);
  };
  refused("{", "bad.json");
  refused("{}", "is no conversation");
  refused(R"({"format": "cpuinfer conversation", "version": 9})", "is a conversation of version 9, expected 1");
  refused(R"({"format": "cpuinfer conversation", "version": 1})", "\"messages\" is no array");
  refused(R"({"format": "cpuinfer conversation", "version": 1, "messages": [{"role": "system", "content": ""}]})",
          "message 0: expected \"role\": \"user\"");
  refused(R"({"format": "cpuinfer conversation", "version": 1, "messages": [{"role": "user", "content": "a"}]})",
          "the last message has no answer");
  refused(R"({"format": "cpuinfer conversation", "version": 1, "messages": [], "tokens": [-1]})",
          "\"tokens\": -1 is no token id");
  // Tokens of another model are only a hint, and unusable here.
  write_file(file, R"({"format": "cpuinfer conversation", "version": 1, "model": "other", "messages": [],
    "tokens": [2000000000]})");
  const Outcome outcome = run_cpuinfer({"-m", tiny_model(), "-n", "2", "--session", file, "--prompt", "Hello"});
  INFO(outcome.err);
  CHECK(outcome.exit_code == 0);
  CHECK(contains(outcome.err, "the conversation was held with 'other'"));
  const Outcome raw = run_cpuinfer({"-m", tiny_model(), "--raw", "--session", file, "--prompt", "Hello"});
  CHECK(raw.exit_code == 2);
  CHECK(contains(raw.err, "--session keeps conversations"));
}
