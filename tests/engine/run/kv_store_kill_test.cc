// kill -9 at random moments of a prefill that writes to a KV store: no damaged page is served, and of what was computed
// at most the pages of one chunk are lost.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <random>
#include <thread>

#include "base/log.h"
#include "tests/engine/checkpoint/temporary_directory.h"
#include "tests/engine/run/synthetic_engine.h"

using namespace cpuinfer;
using namespace cpuinfer::run;
namespace fs = std::filesystem;

namespace {

constexpr int kPage = kernels::kLeafTokens;
constexpr int kChunk = 512;
constexpr int64_t kTokens = 24 * 1024;
constexpr int kKills = 50;

EngineOptions options_for(const fs::path& store) {
  EngineOptions options;
  options.synthetic = small_model(kTokens, 4, 2);
  options.threads = 1;
  options.context_tokens = kTokens;
  options.chunk_tokens = kChunk;
  options.kv_store.directory = store;
  return options;
}

// Of the same length always: what of it is stored, is reused.
std::vector<TokenId> text() {
  std::vector<TokenId> tokens(kTokens);
  for (int64_t i = 0; i < kTokens; ++i) tokens[i] = static_cast<TokenId>((i * 37 + i / 11) % 199);
  return tokens;
}

// A process of its own that computes the text, or goes on with it, and reports by the pipe how far it is.
[[noreturn]] void compute(const fs::path& store, int pipe) {
  const auto engine = loaded_engine(options_for(store));
  auto sequence = engine->start_sequence(kTokens);
  if (!sequence) ::_exit(2);
  const std::vector<TokenId> tokens = text();
  const auto reused = engine->reuse(*sequence, tokens);
  if (!reused) ::_exit(3);
  const auto report = [&](int64_t done) {
    if (::write(pipe, &done, sizeof(done)) != sizeof(done)) ::_exit(4);
  };
  report(sequence->length());
  AppendOptions options;
  options.progress = [&](int64_t done, int64_t) { report(reused->total() + done); };
  const auto done = engine->append(*sequence, std::span(tokens).subspan(static_cast<size_t>(reused->total())), options);
  ::_exit(done ? 0 : 5);
}

// Tokens that a store has of the text, all read and compared with their checksums.
int64_t stored_tokens(const fs::path& store) {
  const auto engine = loaded_engine(options_for(store));
  auto sequence = engine->start_sequence(kTokens);
  REQUIRE(sequence);
  const auto reused = engine->reuse(*sequence, text());
  REQUIRE(reused);
  return reused->store;
}

// The logits after the whole text, begun with what the store has; no path: with nothing.
std::vector<float> last_logits(const fs::path& store) {
  const auto engine = loaded_engine(options_for(store));
  auto sequence = engine->start_sequence(kTokens);
  REQUIRE(sequence);
  const std::vector<TokenId> tokens = text();
  const auto reused = engine->reuse(*sequence, std::span(tokens).first(tokens.size() - 1));
  REQUIRE(reused);
  std::vector<float> last;
  AppendOptions options;
  options.logits = [&](int64_t, std::span<const std::span<const float>> logits) {
    last.assign(logits.back().begin(), logits.back().end());
  };
  REQUIRE(engine->append(*sequence, std::span(tokens).subspan(static_cast<size_t>(reused->total())), options));
  return last;
}

}  // namespace

TEST_CASE("50 kills at random moments lose at most a chunk and serve no damaged page") {
  const checkpoint::TemporaryDirectory directory;
  const fs::path store = directory.path() / "kv";
  std::string warnings;
  set_log_sink([&](LogLevel level, std::string_view message) {
    if (level == LogLevel::kWarn) warnings += std::string(message) + "\n";
  });
  const std::vector<float> expected = last_logits({});
  std::mt19937 random(7);
  int64_t before = 0, most_lost = 0;
  int kills = 0, rounds = 0;
  while (kills < kKills) {
    ++rounds;
    REQUIRE(rounds < 20 * kKills);
    int pipe[2];
    REQUIRE(::pipe(pipe) == 0);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      ::close(pipe[0]);
      compute(store, pipe[1]);
    }
    ::close(pipe[1]);
    int64_t reported = 0, got = 0;
    // From the first report on: there it computes and writes.
    REQUIRE(::read(pipe[0], &reported, sizeof(reported)) == sizeof(reported));
    CHECK(reported == before);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 60'000));
    ::kill(child, SIGKILL);
    while (::read(pipe[0], &got, sizeof(got)) == sizeof(got)) reported = got;
    ::close(pipe[0]);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    if (WIFSIGNALED(status)) {
      ++kills;
    } else {
      REQUIRE(WEXITSTATUS(status) == 0);
    }

    const int64_t found = stored_tokens(store);
    CHECK(found >= before);  // nothing that was on the disk is lost
    CHECK(found >= (reported - kChunk) / kPage * kPage);
    most_lost = std::max(most_lost, reported - found);
    before = found;
    if (found > kTokens * 9 / 10 || kills == kKills) {
      // The text that was interrupted so often ends as if it had not been. Then from the beginning again.
      CHECK(last_logits(store) == expected);
      fs::remove_all(store);
      before = 0;
    }
  }
  set_log_sink(nullptr);
  CHECK_MESSAGE(warnings.empty(), warnings);
  MESSAGE(kills << " kills, at most " << most_lost << " computed tokens lost");
}
