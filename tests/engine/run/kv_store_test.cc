// Prompts that begin with pages from disk: the same bits as without, whatever was stored, damaged or interrupted.
#include "engine/run/kv_store.h"

#include <atomic>
#include <fstream>

#include "tests/engine/run/stored_prompts.h"

using namespace cpuinfer;
using namespace cpuinfer::run;
namespace fs = std::filesystem;

namespace {

EngineOptions options_for(const fs::path& store, int nodes = 1) {
  EngineOptions options;
  options.synthetic = small_model(8192, 2, 2);
  options.context_tokens = 4096;
  options.threads = std::max(2, nodes);
  options.machine.simulated_nodes = nodes;
  options.chunk_tokens = 200;
  options.kv_store.directory = store;
  return options;
}

}  // namespace

TEST_CASE("a stored prefix gives the bits of a run without a store") {
  const std::vector<TokenId> tokens = tokens_up_to(1100);
  const Answer expected = answer_once(options_for({}), tokens);
  CHECK(expected.reused.total() == 0);
  for (const int nodes : {1, 2, 3}) {
    CAPTURE(nodes);
    Directory directory;
    const Answer first = answer_once(options_for(directory.store(), nodes), tokens);
    CHECK(first.reused.store == 0);
    CHECK(same(first, expected));
    CHECK(directory.pages().size() == 4);
    // Another process, other nodes and chunks.
    EngineOptions other = options_for(directory.store(), 1);
    other.chunk_tokens = 77;
    const Answer second = answer_once(other, tokens);
    CHECK(second.reused.store == 4 * kPage);
    CHECK(same(second, expected));
    // A text that shares 600 tokens has two pages in common.
    std::vector<TokenId> branch = tokens;
    branch[600] += 1;
    const Answer third = answer_once(other, branch);
    CHECK(third.reused.store == 2 * kPage);
    CHECK(same(third, answer_once(options_for({}), branch)));
    CHECK(directory.warnings.empty());
  }
}

TEST_CASE("what a sequence has is not read, what it has not is") {
  Directory directory;
  const auto engine = loaded_engine(options_for(directory.store()));
  const std::vector<TokenId> tokens = tokens_up_to(1100), others = tokens_up_to(900, 1);
  Sequence sequence = started(*engine);
  const Answer expected = answer(*engine, sequence, tokens);
  Answer again = answer(*engine, sequence, tokens);
  CHECK(again.reused.memory == 1099);
  CHECK(again.reused.store == 0);
  // Cut in the middle of a page: the store has the whole of it.
  sequence.truncate(700);
  again = answer(*engine, sequence, tokens);
  CHECK(again.reused.memory == 2 * kPage);
  CHECK(again.reused.store == 2 * kPage);
  CHECK(same(again, expected));
  // Another text in between.
  answer(*engine, sequence, others);
  again = answer(*engine, sequence, tokens);
  CHECK(again.reused.memory == 0);
  CHECK(again.reused.store == 4 * kPage);
  CHECK(same(again, expected));
}

TEST_CASE("whatever changes keys and values changes the names of pages") {
  Directory directory;
  const std::vector<TokenId> tokens = tokens_up_to(600);
  answer_once(options_for(directory.store()), tokens);
  const auto stored = [&](const std::function<void(EngineOptions&)>& change) {
    EngineOptions options = options_for(directory.store());
    change(options);
    const Answer found = answer_once(options, tokens);
    options.kv_store.directory.clear();
    CHECK(same(found, answer_once(options, tokens)));
    return found.reused.store;
  };
  CHECK(stored([](EngineOptions&) {}) == 2 * kPage);
  CHECK(stored([](EngineOptions& o) { o.threads = 1; }) == 2 * kPage);
  CHECK(stored([](EngineOptions& o) { o.synthetic->seed = 2; }) == 0);
  CHECK(stored([](EngineOptions& o) { o.experts = 2; }) == 0);
  CHECK(stored([](EngineOptions& o) { o.numerics = "amx"; }) == 0);
  CHECK(stored([](EngineOptions& o) {
          o.rope.emplace();
          o.rope->type = model::RopeType::kYarn;
          o.rope->factor = 2;
          o.rope->original_max_positions = 4096;
        }) == 0);
  CHECK(stored([](EngineOptions& o) { o.synthetic->config.set("rms_norm_eps", 1e-5); }) == 0);
  CHECK(stored([](EngineOptions& o) { o.synthetic->config.set("norm_topk_prob", false); }) == 0);
}

TEST_CASE("a damaged page ends the prefix, is reported and computed again") {
  const std::vector<TokenId> tokens = tokens_up_to(1100);
  const Answer expected = answer_once(options_for({}), tokens);
  Directory directory;
  answer_once(options_for(directory.store()), tokens);
  const std::vector<fs::path> pages = directory.pages();
  for (const fs::path& page : pages) {
    directory.warnings.clear();
    {
      std::fstream file(page, std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(-100, std::ios::end);
      file.put('x');
      file.put('y');
    }
    const Answer found = answer_once(options_for(directory.store()), tokens);
    CHECK(found.reused.store < 4 * kPage);
    CHECK(found.reused.store % kPage == 0);
    CHECK(same(found, expected));
    CHECK(directory.warnings.find("is damaged") != std::string::npos);
    const Answer mended = answer_once(options_for(directory.store()), tokens);
    CHECK(mended.reused.store == 4 * kPage);
    CHECK(same(mended, expected));
  }
}

TEST_CASE("an interrupted prompt goes on from the last stored page") {
  const std::vector<TokenId> tokens = tokens_up_to(2000);
  const Answer expected = answer_once(options_for({}), tokens);
  Directory directory;
  {
    const auto engine = loaded_engine(options_for(directory.store()));
    Sequence sequence = started(*engine);
    std::atomic<bool> cancel = false;
    AppendOptions options;
    options.cancel = &cancel;
    options.progress = [&](int64_t done, int64_t) { cancel = done >= 1000; };
    const auto done = engine->append(sequence, tokens, options);
    REQUIRE_FALSE(done);
    CHECK(done.error().code == ErrorCode::kInterrupted);
    CHECK(sequence.length() == 1000);
  }
  const Answer second = answer_once(options_for(directory.store()), tokens);
  CHECK(second.reused.store == 3 * kPage);
  CHECK(same(second, expected));
}

TEST_CASE("reading can be interrupted too") {
  Directory directory;
  const std::vector<TokenId> tokens = tokens_up_to(1100);
  answer_once(options_for(directory.store()), tokens);
  const auto engine = loaded_engine(options_for(directory.store()));
  Sequence sequence = started(*engine);
  const std::atomic<bool> cancel = true;
  AppendOptions options;
  options.cancel = &cancel;
  const auto reused = engine->reuse(sequence, tokens, options);
  REQUIRE_FALSE(reused);
  CHECK(reused.error().code == ErrorCode::kInterrupted);
  CHECK(sequence.length() == 0);
}

TEST_CASE("a saved sequence comes back whole, and goes on with the same bits") {
  Directory directory;
  const std::vector<TokenId> tokens = tokens_up_to(700), more = tokens_up_to(900);
  const Answer expected = answer_once(options_for({}), more);
  {
    const auto engine = loaded_engine(options_for(directory.store()));
    Sequence sequence = started(*engine);
    answer(*engine, sequence, tokens);
    engine->save(sequence);
    CHECK(directory.pages().size() == 3);
    CHECK(same(answer(*engine, sequence, more), expected));  // the saved page is not touched by what follows
  }
  const auto engine = loaded_engine(options_for(directory.store()));
  Sequence sequence = started(*engine);
  const auto reused = engine->reuse(sequence, tokens);
  REQUIRE(reused);
  CHECK(reused->store == 700);
  CHECK(sequence.length() == 700);
  const auto done = engine->append(sequence, std::span(more).subspan(700), {});
  REQUIRE(done);
  sequence.truncate(0);
  CHECK(same(answer(*engine, sequence, more), expected));
}

TEST_CASE("many sequences in steps share what is stored") {
  Directory directory;
  EngineOptions options = options_for(directory.store());
  options.sequences = 3;
  const auto engine = loaded_engine(options);
  std::vector<Sequence> sequences;
  for (int i = 0; i < 3; ++i) sequences.push_back(started(*engine));
  // 3 texts, in steps of 60 tokens each: their pages are complete in the same steps.
  std::vector<std::vector<TokenId>> texts;
  for (int i = 0; i < 3; ++i) texts.push_back(tokens_up_to(600, i));
  for (size_t at = 0; at < 600; at += 60) {
    std::vector<StepRequest> requests;
    for (int i = 0; i < 3; ++i)
      requests.push_back({&sequences[i], std::span(texts[i]).subspan(at, 60), LogitRows::kNone});
    REQUIRE(engine->step(requests));
  }
  sequences.clear();
  for (const std::vector<TokenId>& text : texts) {
    Sequence sequence = started(*engine);
    CHECK(answer(*engine, sequence, text).reused.store == 2 * kPage);
  }
}

TEST_CASE("the same text twice in a step is stored once") {
  Directory directory;
  EngineOptions options = options_for(directory.store());
  options.sequences = 2;
  const auto engine = loaded_engine(options);
  Sequence first = started(*engine), second = started(*engine);
  const std::vector<TokenId> tokens = tokens_up_to(600);
  for (size_t at = 0; at < 600; at += 60) {
    const StepRequest requests[] = {{&first, std::span(tokens).subspan(at, 60), LogitRows::kNone},
                                    {&second, std::span(tokens).subspan(at, 60), LogitRows::kNone}};
    REQUIRE(engine->step(requests));
  }
  CHECK(engine->stored_tokens(first, tokens) == 2 * kPage);
  CHECK(directory.pages().size() == 2);
  CHECK(directory.warnings.empty());
}

TEST_CASE("of a prompt that the store is too small for the beginning is found again") {
  Directory directory;
  EngineOptions options = options_for(directory.store());
  options.kv_store.size_bytes = 3 * KvStore::shape(*model::parse_model_config(options.synthetic->config)).file_bytes();
  const std::vector<TokenId> tokens = tokens_up_to(2000);
  answer_once(options, tokens);
  CHECK(directory.warnings.find("a larger --kv-store-size would keep them") != std::string::npos);
  CHECK(answer_once(options, tokens).reused.store == 3 * kPage);
}

TEST_CASE("what is saved has nothing of those who were there before") {
  Directory directory;
  EngineOptions options = options_for(directory.store());
  options.kv_tokens = kPage;
  const auto saved = [&](bool others_before) {
    const auto engine = loaded_engine(options);
    if (others_before) {
      Sequence other = *engine->start_sequence(kPage);
      REQUIRE(engine->append(other, tokens_up_to(250, 3), {}));
    }
    Sequence sequence = *engine->start_sequence(kPage);
    REQUIRE(engine->append(sequence, tokens_up_to(100), {}));
    engine->save(sequence);
    const std::vector<fs::path> pages = directory.pages();
    REQUIRE(pages.size() == 1);
    std::ifstream file(pages[0], std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    fs::remove(pages[0]);
    return bytes;
  };
  CHECK(saved(false) == saved(true));
}

TEST_CASE("a store for kernels without the promise of bits is refused, and so are stores that cannot be had") {
  Directory directory;
  EngineOptions options = options_for(directory.store());
  const auto error = [&](const EngineOptions& wanted) {
    auto engine = Engine::prepare(wanted);
    REQUIRE(engine);
    const auto loaded = (*engine)->load();
    return loaded ? std::string() : loaded.error().message;
  };
  const auto first = loaded_engine(options);
  CHECK(error(options).find("another process uses this KV store") != std::string::npos);
  options.kv_store.directory = directory.store() / "other";
  options.kv_store.size_bytes = 1000;
  CHECK(error(options).find("one page of 256 tokens of this model takes") != std::string::npos);
  if (kernels::covers(kernels::detect_isa(), kernels::Isa::kAvx512)) {
    options.gemm = "onednn";
    CHECK(error(options).find("leave out --gemm, or --kv-store") != std::string::npos);
  }
}
