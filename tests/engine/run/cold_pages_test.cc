// Contexts larger than the memory for their keys and values: attention reads them from disk for every step, with the
// same bits.
#include <atomic>
#include <fstream>

#include "tests/engine/run/stored_prompts.h"

using namespace cpuinfer;
using namespace cpuinfer::run;
namespace fs = std::filesystem;

namespace {

constexpr int64_t kContext = 16 * 1024;
// Sanitizers make it too slow for all.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kNodes[] = {3};
#else
constexpr int kNodes[] = {1, 2, 3};
#endif

EngineOptions plain_options(int nodes = 1) {
  EngineOptions options;
  options.synthetic = small_model(kContext, 8, 4);
  options.context_tokens = kContext;
  options.threads = std::max(2, nodes);
  options.machine.simulated_nodes = nodes;
  options.chunk_tokens = 300;
  return options;
}

int64_t planned_bytes(const EngineOptions& options) {
  const auto engine = Engine::prepare(options);
  REQUIRE(engine);
  return (*engine)->plan().total();
}

// Memory for about `pages` pages in all and the buffers to read the others with.
EngineOptions small_memory(EngineOptions options, const fs::path& store, int64_t pages) {
  EngineOptions fitting = options;
  fitting.kv_tokens = pages * kPage;
  const model::ModelConfig config = *model::parse_model_config(options.synthetic->config);
  const int nodes = std::max(options.machine.simulated_nodes, 1);
  const int64_t buffers =
      model::KvCache::page_bytes(ColdStream::one_layer(config)) * ColdStream::stage_pages(nodes, config);
  options.memory_limit_bytes = planned_bytes(fitting) + buffers + buffers / 256 + 600_KiB;
  options.kv_store.directory = store;
  options.kv_on_disk = true;
  return options;
}

}  // namespace

TEST_CASE("a context larger than memory gives the bits of one that fits") {
  const std::vector<TokenId> tokens = tokens_up_to(9000);
  const auto whole = loaded_engine(plain_options());
  Sequence reference = started(*whole);
  const Answer prefill = answer(*whole, reference, tokens);
  std::vector<TokenId> longer = tokens;
  for (int i = 0; i < 5; ++i) longer.push_back(static_cast<TokenId>(7 * i));
  const Answer decode = answer(*whole, reference, longer);

  for (const int nodes : kNodes) {
    CAPTURE(nodes);
    Directory directory;
    const EngineOptions options = small_memory(plain_options(nodes), directory.store(), 30);
    const auto engine = loaded_engine(options);
    REQUIRE(engine->memory_tokens() < 9000);
    Sequence sequence = started(*engine);
    CHECK(same(answer(*engine, sequence, tokens), prefill));
    CHECK(sequence.cold_tokens() > 0);
    // Decode: one row at a time.
    for (size_t length = tokens.size() + 1; length < longer.size(); ++length)
      answer(*engine, sequence, std::span(longer).first(length));
    CHECK(same(answer(*engine, sequence, longer), decode));
    CHECK(engine->cold_stream()->statistics().bytes > 0);
    CHECK(directory.warnings.empty());
  }
  // A prompt that the store has, in another process.
  Directory directory;
  const EngineOptions options = small_memory(plain_options(), directory.store(), 30);
  answer_once(options, tokens);
  const Answer stored = answer_once(options, tokens);
  CHECK(stored.reused.store == 35 * kPage);
  CHECK(same(stored, prefill));
}

TEST_CASE("what fits is not streamed") {
  Directory directory;
  EngineOptions options = plain_options();
  options.kv_store.directory = directory.store();
  options.kv_on_disk = true;
  const auto engine = loaded_engine(options);
  CHECK(engine->cold_stream() == nullptr);
  CHECK(engine->memory_tokens() == kContext);
}

TEST_CASE("waiting sequences make room and come back when they are scheduled") {
  std::vector<Answer> expected;
  EngineOptions plain = plain_options();
  for (int i = 0; i < 3; ++i) {
    std::vector<TokenId> text = tokens_up_to(5000, i);
    text.resize(4900);
    expected.push_back(answer_once(plain, text));
  }
  Directory directory;
  plain.sequences = 3;
  plain.kv_tokens = 3 * 8192;
  const auto engine = loaded_engine(small_memory(plain, directory.store(), 52));
  REQUIRE(engine->cold_stream() != nullptr);
  std::vector<Sequence> sequences;
  for (int i = 0; i < 3; ++i) {
    auto sequence = engine->start_sequence(6000);
    REQUIRE(sequence);
    sequences.push_back(std::move(*sequence));
  }
  // In turns: each computes some while the others wait.
  std::vector<TokenId> texts[3];
  for (int i = 0; i < 3; ++i) texts[i] = tokens_up_to(5000, i);
  for (int i = 0; i < 3; ++i) REQUIRE(engine->append(sequences[i], std::span(texts[i]).first(4500), {}));
  int64_t cold = 0;
  for (const Sequence& sequence : sequences) cold += sequence.cold_tokens();
  CHECK(cold > 0);
  for (int i = 0; i < 3; ++i) {
    CAPTURE(i);
    CHECK(same(answer(*engine, sequences[i], std::span(texts[i]).first(4900)), expected[i]));
  }
  // All in one step, with more cold pages than memory has room for.
  std::vector<StepRequest> requests;
  for (int i = 0; i < 3; ++i) requests.push_back({&sequences[i], std::span(texts[i]).subspan(4900, 1)});
  REQUIRE(engine->step(requests));
  for (int i = 0; i < 3; ++i) requests[i].tokens = std::span(texts[i]).subspan(4901, 20);
  REQUIRE(engine->step(requests));
  EngineOptions alone = plain_options();
  for (int i = 0; i < 3; ++i) {
    const Answer last = answer_once(alone, std::span(texts[i]).first(4950));
    CHECK(same(answer(*engine, sequences[i], std::span(texts[i]).first(4950)), last));
  }
}

TEST_CASE("a cold page that is damaged is reported and computed again") {
  const std::vector<TokenId> tokens = tokens_up_to(9000), longer = tokens_up_to(9010);
  const Answer expected = answer_once(plain_options(), longer);
  Directory directory;
  const auto engine = loaded_engine(small_memory(plain_options(), directory.store(), 30));
  Sequence sequence = started(*engine);
  answer(*engine, sequence, tokens);
  REQUIRE(sequence.cold_tokens() >= 2048);
  for (const fs::path& page : directory.pages()) {
    if (!page.extension().empty()) continue;  // being written
    std::fstream file(page, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-5000, std::ios::end);
    file.put('x');
    file.put('y');
  }
  CHECK(same(answer(*engine, sequence, longer), expected));
  CHECK(directory.warnings.find("is damaged") != std::string::npos);
  CHECK(directory.warnings.find("will be computed again") != std::string::npos);
}

TEST_CASE("a store with just the room that is asked for is enough") {
  const std::vector<TokenId> tokens = tokens_up_to(16'000);
  const Answer expected = answer_once(plain_options(), tokens);
  Directory directory;
  EngineOptions options = small_memory(plain_options(), directory.store(), 30);
  const auto planned = Engine::prepare(options);
  REQUIRE(planned);
  const int64_t cold_pages = (kContext - (*planned)->memory_tokens()) / kPage;
  options.kv_store.size_bytes = cold_pages * KvStore::shape((*planned)->config()).file_bytes();
  CHECK(same(answer_once(options, tokens), expected));
}

TEST_CASE("pages that were damaged before they left memory are written again") {
  const std::vector<TokenId> tokens = tokens_up_to(9000);
  const Answer expected = answer_once(plain_options(), tokens);
  Directory directory;
  const EngineOptions options = small_memory(plain_options(), directory.store(), 30);
  answer_once(options, tokens);
  for (const fs::path& page : directory.pages()) fs::resize_file(page, 8192);
  CHECK(same(answer_once(options, tokens), expected));
  CHECK(directory.warnings.find("is 8192 bytes long") != std::string::npos);
  directory.warnings.clear();
  CHECK(same(answer_once(options, tokens), expected));
  CHECK(directory.warnings.empty());
}

TEST_CASE("sequences that are too many for memory have to wait, however short they are") {
  Directory directory;
  EngineOptions options = plain_options();
  options.sequences = 2;
  const auto engine = loaded_engine(small_memory(options, directory.store(), 52));
  REQUIRE(engine->cold_stream() != nullptr);
  std::vector<Sequence> sequences;
  const std::vector<TokenId> tokens = tokens_up_to(1000);
  for (;;) {
    auto sequence = engine->start_sequence(1000);
    if (!sequence) {
      CHECK(sequence.error().code == ErrorCode::kBusy);
      CHECK(sequence.error().message.find("KV pages in memory at the least") != std::string::npos);
      break;
    }
    sequences.push_back(std::move(*sequence));
    REQUIRE(sequences.size() < 24);
    REQUIRE(engine->append(sequences.back(), tokens, {}));
  }
  CHECK(sequences.size() > 2);
  sequences.pop_back();
  CHECK(engine->start_sequence(1000));
}

TEST_CASE("a disk that fails in the middle fails the request, and the engine lives") {
  const std::vector<TokenId> tokens = tokens_up_to(9000), longer = tokens_up_to(9010);
  Directory directory;
  const auto engine = loaded_engine(small_memory(plain_options(), directory.store(), 30));
  Sequence sequence = started(*engine);
  answer(*engine, sequence, tokens);
  for (const fs::path& page : directory.pages())
    if (page.extension().empty()) fs::resize_file(page, 8192);
  const auto failed = engine->append(sequence, std::span(longer).subspan(9000), {});
  REQUIRE_FALSE(failed);
  CHECK(failed.error().code == ErrorCode::kRuntime);
  CHECK(failed.error().message.find("pages/") != std::string::npos);
  CHECK(sequence.length() == 9000);
  // Others are not touched, and it begins anew without the store.
  sequence.truncate(0);
  fs::remove_all(directory.store() / "pages");
  fs::create_directory(directory.store() / "pages");
  const std::vector<TokenId> other = tokens_up_to(700, 5);
  CHECK(same(answer(*engine, sequence, other), answer_once(plain_options(), other)));
}

TEST_CASE("pages on disk are refused without a store, or without room there") {
  Directory directory;
  EngineOptions options = small_memory(plain_options(), {}, 30);
  const auto without = Engine::prepare(options);
  REQUIRE_FALSE(without);
  CHECK(without.error().message.find("give its directory with --kv-store") != std::string::npos);
  options = small_memory(plain_options(), directory.store(), 30);
  options.kv_store.size_bytes = 2_MiB;
  const auto small = Engine::prepare(options);
  REQUIRE(small);
  const auto loaded = (*small)->load();
  REQUIRE_FALSE(loaded);
  CHECK(loaded.error().code == ErrorCode::kDoesNotFit);
  CHECK(loaded.error().message.find("and --kv-store-size is 2.0 MiB") != std::string::npos);
  // Not even what a step needs.
  options.memory_limit_bytes = 1_MiB;
  const auto never = Engine::prepare(options);
  REQUIRE(never);
  CHECK_FALSE((*never)->plan().fits());
}
