// Weights that are read during steps give the same bits as weights in memory; what the disk does wrong ends the step
// and nothing else.
#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/format.h"
#include "tests/engine/load/packed_data.h"
#include "tests/engine/run/synthetic_engine.h"

using namespace cpuinfer;
using namespace cpuinfer::run;
using load::PackedDirectory;

namespace {

// Five layers of experts and two dense ones between them; odd sizes, so that slices begin anywhere in a page, and
// several kv heads, so that the output projection has segments.
std::string mixed_config() {
  return R"({"architectures":["Qwen3MoeForCausalLM"],"hidden_size":72,"num_hidden_layers":7,
    "num_attention_heads":6,"num_key_value_heads":2,"head_dim":24,"vocab_size":199,"intermediate_size":136,
    "num_experts":12,"num_experts_per_tok":3,"moe_intermediate_size":52,"norm_topk_prob":true,
    "mlp_only_layers":[1,4],"rms_norm_eps":1e-6,"tie_word_embeddings":false,"attention_bias":true,
    "max_position_embeddings":4096,"rope_theta":10000.0})";
}

std::string dense_config() {
  return R"({"architectures":["Qwen3ForCausalLM"],"hidden_size":64,"num_hidden_layers":6,"num_attention_heads":4,
    "num_key_value_heads":2,"head_dim":32,"vocab_size":199,"intermediate_size":160,"rms_norm_eps":1e-6,
    "tie_word_embeddings":true,"max_position_embeddings":4096,"rope_theta":10000.0})";
}

TokenId token_at(int64_t i, int sequence = 0) { return static_cast<TokenId>((i * 31 + sequence * 17 + i * i) % 199); }

EngineOptions options_for(const PackedDirectory& directory, int nodes = 1) {
  EngineOptions options;
  options.model = directory.path();
  options.context_tokens = 400;
  options.sequences = 2;
  options.logit_rows = 300;
  options.threads = nodes;
  options.machine.simulated_nodes = nodes > 1 ? nodes : 0;
  return options;
}

// The engine with a plan of the test's: what a machine with less memory would choose.
std::unique_ptr<Engine> streaming_engine(EngineOptions options, int64_t memory_limit) {
  options.stream_weights = true;
  options.memory_limit_bytes = memory_limit;
  return loaded_engine(options);
}

// Memory with which as much is streamed as can be: found by trying.
int64_t least_memory(EngineOptions options) {
  options.stream_weights = true;
  const auto fits = [&](int64_t bytes) {
    options.memory_limit_bytes = bytes;
    const auto engine = Engine::prepare(options);
    REQUIRE_MESSAGE(engine, (engine ? "" : engine.error().message));
    return (*engine)->plan().fits();
  };
  int64_t too_little = 1, enough = 4_GiB;
  while (enough - too_little > 1024) {
    const int64_t middle = too_little + (enough - too_little) / 2;
    (fits(middle) ? enough : too_little) = middle;
  }
  return enough;
}

// Everything an engine says about some prompts in several chunks, then decode of one and of two sequences.
std::vector<float> all_logits(Engine& engine) {
  std::vector<float> all;
  AppendOptions append;
  append.logit_rows = LogitRows::kAll;
  append.logits = [&](int64_t, std::span<const std::span<const float>> rows) {
    for (const std::span<const float> row : rows) all.insert(all.end(), row.begin(), row.end());
  };
  auto first = engine.start_sequence(400), second = engine.start_sequence(400);
  REQUIRE(first);
  REQUIRE(second);
  std::vector<TokenId> prompt;
  for (int i = 0; i < 280; ++i) prompt.push_back(token_at(i));
  REQUIRE(engine.append(*first, prompt, append));
  REQUIRE(engine.append(*second, std::span(prompt).first(7), append));
  for (int i = 0; i < 12; ++i) {
    const TokenId tokens[] = {token_at(i, 1), token_at(i, 2)};
    if (i % 3 == 0) {
      REQUIRE(engine.append(*first, std::span(tokens).first(1), append));
      continue;
    }
    const StepRequest requests[] = {{&*first, {&tokens[0], 1}}, {&*second, {&tokens[1], 1}}};
    const auto logits = engine.step(requests);
    REQUIRE(logits);
    for (const StepLogits& rows : *logits) all.insert(all.end(), rows[0].begin(), rows[0].end());
  }
  return all;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Sanitizers make it too slow for all of them. Parts: eighths of the weights that memory has room for, beside the
// least.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kNodes[] = {3}, kChunks[] = {50}, kParts[] = {0, 2, 40};
#else
constexpr int kNodes[] = {1, 2, 3}, kChunks[] = {512, 50}, kParts[] = {0, 1, 2, 4, 8, 40};
#endif

}  // namespace

TEST_CASE("streamed experts, MLPs and attention give the bits of weights in memory, from the least memory to all") {
  for (const bool dense : {false, true}) {
    const PackedDirectory directory(dense ? dense_config() : mixed_config());
    const std::vector<float> expected = all_logits(*loaded_engine(options_for(directory)));
    for (const int nodes : kNodes) {
      for (const int chunk : kChunks) {
        EngineOptions options = options_for(directory, nodes);
        options.chunk_tokens = chunk;
        const int64_t least = least_memory(options);
        const int64_t weights = directory.statistics().bytes;
        bool streamed_attention = false, streamed_mlps = false, streamed_experts = false, streamed_nothing = false;
        for (const int part : kParts) {
          CAPTURE(dense);
          CAPTURE(nodes);
          CAPTURE(chunk);
          CAPTURE(part);
          // A sixteenth is left alone where more than the least fits.
          const int64_t memory = part == 0 ? least : (least + weights * part / 8) / 15 * 16 + 4096;
          const auto engine = streaming_engine(options, memory);
          const load::StreamPlan& plan = engine->stream_plan();
          streamed_attention |= plan.attention_layers > 0;
          streamed_mlps |= plan.mlp_layers > 0;
          streamed_experts |= plan.expert_slots > 0;
          streamed_nothing |= !plan.streams();
          CHECK(same_bits(all_logits(*engine), expected));
          CHECK((engine->stream_statistics().bytes > 0) == plan.streams());
          CHECK(engine->weights_fingerprint() == directory.statistics().fingerprint);
        }
        CHECK(streamed_attention);
        CHECK(streamed_mlps == dense);  // two MLPs are no more than their slots
        CHECK(streamed_experts == !dense);
        CHECK(streamed_nothing);
      }
    }
  }
}

TEST_CASE("both ways of reading give the same bits") {
  const PackedDirectory directory(mixed_config());
  const std::vector<float> expected = all_logits(*loaded_engine(options_for(directory)));
  for (const storage::IoBackend backend : {storage::IoBackend::kThreads, storage::IoBackend::kUring}) {
    if (!storage::IoQueue::create(1, backend)) {
      MESSAGE("io_uring is not tested: the system refuses it");
      continue;
    }
    EngineOptions options = options_for(directory, 2);
    options.stream_backend = backend;
    CHECK(same_bits(all_logits(*streaming_engine(options, least_memory(options))), expected));
  }
}

TEST_CASE("a disk that fails in a step fails that step, and the engine goes on when it is back") {
  for (const bool dense : {false, true}) {
    CAPTURE(dense);
    const PackedDirectory directory(dense ? dense_config() : mixed_config());
    const std::string good = directory.read();
    EngineOptions options = options_for(directory, 2);
    options.chunk_tokens = 100;
    options.kv_tokens = 3 * 512;  // three sequences live at a time
    const std::vector<float> expected = all_logits(*loaded_engine(options));
    const auto engine = streaming_engine(options, least_memory(options));
    auto sequence = engine->start_sequence(400);
    REQUIRE(sequence);
    std::vector<TokenId> prompt;
    for (int i = 0; i < 300; ++i) prompt.push_back(token_at(i));
    REQUIRE(engine->append(*sequence, std::span(prompt).first(50), {}));
    // Shorter: from the end on, so that steps fail in the last layers first, then in all.
    for (const double part : {0.9, 0.5, 0.2, 0.05}) {
      CAPTURE(part);
      const auto bytes = static_cast<int64_t>(static_cast<double>(good.size()) * part) / 4096 * 4096;
      REQUIRE(::truncate(directory.file().c_str(), bytes) == 0);
      const auto failed = engine->append(*sequence, std::span(prompt).subspan(50, 250), {});
      REQUIRE(!failed);
      CHECK(failed.error().code == ErrorCode::kRuntime);
      CHECK(failed.error().message.starts_with(directory.file().string() + ": cannot read "));
      CHECK(failed.error().message.find(format("the file ends at byte {}", bytes)) != std::string::npos);
      CHECK(failed.error().message.find("(reading layer ") != std::string::npos);
      CHECK(sequence->length() == 50);
      const TokenId token = 3;
      CHECK(!engine->append(*sequence, {&token, 1}, {}));
      CHECK(sequence->length() == 50);
    }
    directory.write(good);
    CHECK(same_bits(all_logits(*engine), expected));
    // The sequence that was there has lost nothing.
    REQUIRE(engine->append(*sequence, std::span(prompt).subspan(50, 250), {}));
    CHECK(sequence->length() == 300);
  }
}

TEST_CASE("what is damaged on disk is named, by every step that reads it") {
  for (const bool dense : {false, true}) {
    const PackedDirectory directory(dense ? dense_config() : mixed_config());
    const auto file = load::PackedFile::open(directory.file());
    REQUIRE(file);
    const EngineOptions options = options_for(directory, 2);
    const std::vector<float> expected = all_logits(*loaded_engine(options));
    const auto engine = streaming_engine(options, least_memory(options));
    const auto model = model::create_model(engine->config(), model::Placement::even(1));
    const auto layout = file->layout_for(**model);
    REQUIRE(layout);
    int damaged = 0;
    for (const load::PackedPart& part : layout->parts) {
      if (!load::is_streamed(engine->config(), engine->stream_plan(), layout->weights_of(part).front().spec)) continue;
      if (part.expert > 2) continue;
      CAPTURE(part.name);
      const int64_t offset = file->data_offset() + part.offset + part.bytes / 2;
      directory.flip(offset);
      auto sequence = engine->start_sequence(400);
      std::vector<TokenId> prompt;
      for (int i = 0; i < 200; ++i) prompt.push_back(token_at(i));
      // Twice: the damaged part is not kept. The first may meet a good copy in memory.
      Result<void> last;
      for (int tries = 0; tries < 2; ++tries) last = engine->append(*sequence, prompt, {});
      if (!last) {
        ++damaged;
        CHECK(last.error().code == ErrorCode::kBadInput);
        CHECK(last.error().message.find(": " + part.name + " is damaged: ") != std::string::npos);
        CHECK(last.error().message.find("run `cpuinfer pack` again") != std::string::npos);
        CHECK(sequence->length() == 0);
      }
      directory.flip(offset);
    }
    CHECK(damaged > 3);
    CHECK(same_bits(all_logits(*engine), expected));
  }
}

TEST_CASE("what streaming needs") {
  const PackedDirectory directory(mixed_config());
  EngineOptions options = options_for(directory);
  options.stream_weights = true;
  options.whole_experts = true;
  CHECK(Engine::prepare(options).error().message ==
        "--weights stream has slices of experts on all nodes: leave out --placement expert");
  options.whole_experts = false;
  options.memory_limit_bytes = 1_MiB;
  const auto small = Engine::prepare(options);
  REQUIRE(small);
  const auto refused = (*small)->load();
  REQUIRE(!refused);
  CHECK(refused.error().code == ErrorCode::kDoesNotFit);
  CHECK(refused.error().message.find("expert cache") != std::string::npos);
  CHECK(refused.error().message.find("read buffers") != std::string::npos);

  options.model = std::filesystem::path(CPUINFER_SOURCE_DIR) / "tests/data/goldens/moe_basic";
  const auto unpacked = Engine::prepare(options);
  REQUIRE(!unpacked);
  CHECK(unpacked.error().code == ErrorCode::kUsage);
  CHECK(unpacked.error().message == format("--weights stream reads packed weights and {0} has none: `cpuinfer pack "
                                           "--model {0} --output NEWDIR` writes them, then give --model NEWDIR",
                                           options.model.string()));
  options.synthetic = small_model(4096);
  options.memory_limit_bytes = 0;
  const auto synthetic = Engine::prepare(options);
  REQUIRE(synthetic);
  CHECK((*synthetic)->load().error().message == "a synthetic model has no file to stream weights from: pack it first");
}

TEST_CASE("a model that streams says what, and how much is read for a token") {
  const PackedDirectory directory(mixed_config());
  EngineOptions options = options_for(directory);
  const auto engine = streaming_engine(options, least_memory(options));
  const std::vector<std::string> lines = engine->describe();
  const auto line =
      std::find_if(lines.begin(), lines.end(), [](const std::string& l) { return l.starts_with("weights"); });
  REQUIRE(line != lines.end());
  CHECK_MESSAGE(line->starts_with("weights   streamed: attention of 7 of 7 layers, experts, 0 of 60 in memory; 0.00 GB "
                                  "are read for a token if experts are equally likely"),
                *line);
  CHECK(engine->streamed_bytes_per_token() > 0);
}
