// Packed files: written, read back on any number of nodes, and refused when they are not what they should be.
#include <doctest/doctest.h>

#include <cstring>

#include "engine/load/checkpoint_weights.h"
#include "engine/load/fingerprint.h"
#include "engine/load/pack.h"
#include "engine/load/packed_file.h"
#include "engine/load/packed_loader.h"
#include "tests/engine/load/loader_data.h"
#include "tests/engine/load/packed_data.h"

using namespace cpuinfer;
using namespace cpuinfer::load;

namespace {

// Units of 3, 5 and 2 KiB, so that slices begin anywhere in a page; segments; a dense layer; biases; no tie.
constexpr const char* kOdd = R"({"architectures":["Qwen3MoeForCausalLM"],"hidden_size":72,"num_hidden_layers":2,
  "num_attention_heads":6,"num_key_value_heads":2,"head_dim":24,"vocab_size":337,"intermediate_size":152,
  "num_experts":5,"num_experts_per_tok":2,"moe_intermediate_size":52,"norm_topk_prob":true,"mlp_only_layers":[1],
  "rms_norm_eps":1e-6,"tie_word_embeddings":false,"attention_bias":true,"max_position_embeddings":64,
  "rope_theta":10000.0})";

struct ReadBack {
  std::unique_ptr<model::Model> model;
  WeightMemory memory;
  storage::Digest128 fingerprint, file_fingerprint;
  LoadStatistics statistics;
};

Result<ReadBack> read_back(const std::filesystem::path& directory, int nodes, int threads, bool direct = true,
                           const std::atomic<bool>* cancel = nullptr) {
  TRY_ASSIGN(const checkpoint::Checkpoint checkpoint, checkpoint::Checkpoint::open(directory));
  CHECK(checkpoint.is_packed());
  TRY_ASSIGN(const model::ModelConfig config, model::parse_model_config(checkpoint.config()));
  ReadBack back;
  TRY_ASSIGN(back.model, model::create_model(config, model::Placement::even(nodes)));
  TRY_ASSIGN(const PackedFile file, PackedFile::open(checkpoint.packed_path(), direct));
  TRY_ASSIGN(const PackedLayout layout, file.layout_for(*back.model));
  TRY_ASSIGN(const numa::Topology topology, numa::Topology::detect());
  TRY_ASSIGN(const std::unique_ptr<numa::Team> team,
             numa::Team::create(topology, {.threads = threads, .nodes = nodes}));
  TRY_ASSIGN(back.memory, allocate_weights(*back.model, nodes, topology));
  TRY(read_packed(file, layout, layout.parts, *team, topology, {.cancel = cancel, .statistics = &back.statistics}));
  back.fingerprint = fingerprint_weights(*back.model, *team);
  back.file_fingerprint = file.fingerprint();
  return back;
}

Error error_of(const PackedDirectory& directory) {
  const auto back = read_back(directory.path(), 1, 2);
  REQUIRE(!back);
  CHECK(back.error().message.starts_with(directory.file().string() + ": "));
  CHECK(back.error().message.find("run `cpuinfer pack` again") != std::string::npos);
  return back.error();
}

bool contains(const Error& error, std::string_view part) { return error.message.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a checkpoint is packed and read back: every number, on any number of nodes") {
  Directory directory;
  directory.write(DType::kBF16);
  const auto checkpoint = checkpoint::Checkpoint::open(directory.path());
  REQUIRE(checkpoint);
  const auto config = model::parse_model_config(checkpoint->config());
  const auto model = model::create_model(*config, model::Placement::even(1));
  const auto topology = numa::Topology::detect();
  const auto team = numa::Team::create(*topology, {.threads = 2, .nodes = 1});
  const LoadOptions options;
  int64_t told = 0, total = 0;
  {
    CheckpointWeights weights(**model, *checkpoint, **team, *topology, options);
    const auto packed =
        write_packed(**model, [&](std::span<const model::WeightSpec> specs) { return weights.read(specs); },
                     directory.path() / checkpoint::kPackedName, **team, *topology,
                     {.progress = [&](int64_t done, int64_t all) { told = done, total = all; }});
    REQUIRE_MESSAGE(packed, (packed ? "" : packed.error().message));
    CHECK(told == total);
    CHECK(packed->bytes ==
          static_cast<int64_t>(std::filesystem::file_size(directory.path() / checkpoint::kPackedName)));
  }
  for (const int nodes : {1, 2, 3}) {
    for (const bool direct : {true, false}) {
      CAPTURE(nodes);
      const auto back = read_back(directory.path(), nodes, nodes + 1, direct);
      REQUIRE_MESSAGE(back, (back ? "" : back.error().message));
      check_weights(directory, *back->model);
      CHECK(back->fingerprint == back->file_fingerprint);
      CHECK(back->statistics.bytes > 0);
    }
  }
}

TEST_CASE("the fingerprint of a packed file is that of its weights in memory, wherever they lie") {
  const PackedDirectory directory(kOdd);
  for (const int nodes : {1, 2, 3, 4}) {
    CAPTURE(nodes);
    const auto back = read_back(directory.path(), nodes, nodes);
    REQUIRE_MESSAGE(back, (back ? "" : back.error().message));
    CHECK(back->fingerprint == directory.statistics().fingerprint);
    CHECK(back->file_fingerprint == directory.statistics().fingerprint);
  }
}

TEST_CASE("parts are whole pages, an expert has its matrices without a gap, vectors come first") {
  const auto config = model::parse_model_config(*parse_json(kOdd, "config"));
  const auto model = model::create_model(*config, model::Placement::even(3));
  const PackedLayout layout = lay_out_packed(**model);
  CHECK(layout.parts[0].name == "norms and biases");
  CHECK(layout.parts[1].name == "embedding");
  CHECK(layout.parts[2].name == "layer 0 attention");
  CHECK(layout.parts[2].weight_count == 2);
  CHECK(layout.parts[3].name == "layer 0 router");
  CHECK(layout.parts[8].name == "layer 0 expert 4");
  CHECK(layout.parts[8].expert == 4);
  CHECK(layout.parts[10].name == "layer 1 mlp");
  CHECK(layout.parts.back().name == "lm_head");
  for (const PackedPart& part : layout.parts) {
    CHECK(part.offset % kPackedAlignment == 0);
    int64_t at = part.offset;
    for (const PackedWeight& weight : layout.weights_of(part)) {
      CHECK(weight.offset == at);
      at += weight.bytes;
    }
    CHECK(part.bytes == at - part.offset);
  }
}

TEST_CASE("damaged bytes name their part") {
  const PackedDirectory directory(kOdd);
  const auto file = PackedFile::open(directory.file());
  REQUIRE(file);
  const auto config = model::parse_model_config(*parse_json(kOdd, "config"));
  const auto model = model::create_model(*config, model::Placement::even(1));
  const auto layout = file->layout_for(**model);
  REQUIRE(layout);
  for (const PackedPart& part : layout->parts) {
    CAPTURE(part.name);
    const int64_t offset = file->data_offset() + part.offset + part.bytes - 1;
    directory.flip(offset);
    const Error error = error_of(directory);
    CHECK(error.code == ErrorCode::kBadInput);
    CHECK(contains(error, ": " + part.name + " is damaged: "));
    CHECK(contains(error, "expected " + part.digest.hex()));
    directory.flip(offset);
  }
  CHECK(read_back(directory.path(), 1, 2));
}

TEST_CASE("a damaged or truncated header, another version, and files of something else") {
  const PackedDirectory directory(kOdd);
  const std::string good = directory.read();
  const auto with = [&](const std::string& bytes) {
    directory.write(bytes);
    return error_of(directory);
  };
  std::string bytes = good;
  bytes[8] = 2;
  Error error = with(bytes);
  CHECK(error.code == ErrorCode::kUnsupported);
  CHECK(contains(error, "is packed in layout version 2, this cpuinfer reads version 1"));

  bytes = good;
  const std::string numerics = format("\"numerics_version\":{}", model::kNumericsVersion);
  const size_t at = bytes.find(numerics);
  REQUIRE(at != bytes.npos);
  bytes[at + numerics.size() - 1] = '9';
  CHECK(contains(with(bytes), "the header is damaged (its checksum is another)"));
  uint64_t table_bytes = 0;
  std::memcpy(&table_bytes, bytes.data() + 16, 8);
  const uint64_t hash = storage::xxh3_64(std::string_view(bytes).substr(32, table_bytes));
  std::memcpy(bytes.data() + 24, &hash, 8);
  error = with(bytes);
  CHECK(error.code == ErrorCode::kUnsupported);
  CHECK(contains(error,
                 format("is packed for numerics version 9, this cpuinfer has version {}", model::kNumericsVersion)));

  bytes = good;
  bytes[23] = 1;
  CHECK(contains(with(bytes), "the header is damaged (a table of 72057594037"));
  CHECK(contains(with(good.substr(0, 100)), "is 100 bytes long, a file of packed weights has at least 4096"));
  CHECK(contains(with(""), "is 0 bytes long"));
  bytes = good.substr(0, 4096);
  table_bytes = 8000;
  std::memcpy(bytes.data() + 16, &table_bytes, 8);
  CHECK(contains(with(bytes), "is 4096 bytes long, its header alone has 8192: it is truncated"));
  CHECK(contains(with(good.substr(0, good.size() - 4096)), format("expected {}: it is truncated", good.size())));

  bytes = good;
  bytes[0] = 'X';
  directory.write(bytes);
  const auto back = read_back(directory.path(), 1, 1);
  REQUIRE(!back);
  CHECK(back.error().message ==
        directory.file().string() + ": is no file of packed weights: it does not begin with CPINFPKW");

  directory.write(good);
  CHECK(read_back(directory.path(), 1, 1));
}

TEST_CASE("a table that is not whole is refused with what it lacks") {
  const PackedDirectory directory(kOdd);
  const std::string good = directory.read();
  uint64_t table_bytes = 0;
  std::memcpy(&table_bytes, good.data() + 16, 8);
  const std::string table = good.substr(32, table_bytes);
  const auto with = [&](std::string_view from, std::string_view to) {
    std::string changed = table;
    const size_t at = changed.find(from);
    REQUIRE(at != changed.npos);
    changed.replace(at, from.size(), to);
    changed.resize(table.size(), ' ');
    std::string bytes = good;
    bytes.replace(32, changed.size(), changed);
    const uint64_t hash = storage::xxh3_64(changed);
    std::memcpy(bytes.data() + 24, &hash, 8);
    directory.write(bytes);
    return error_of(directory);
  };
  CHECK(contains(with("\"numerics_version\"", "\"numerics\""), "the table of its header has no numerics_version"));
  CHECK(contains(with("\"fingerprint\":\"", "\"fingerprint\":\"z"), "has no fingerprint"));
  CHECK(contains(with("\"bytes\":", "\"bytes\":-"), "has no number of bytes"));
  CHECK(contains(with("\"parts\"", "\"part\""), "has no parts"));
  CHECK(contains(with("\"offset\":0", "\"offset\":\"\""), "has a part 1 that is not whole"));
  CHECK(contains(with("\"digest\":\"", "\"digest\":\"Q"), "has a part 1 that is not whole"));
  const size_t digit = table.find("\"fingerprint\":\"") + std::string_view("\"fingerprint\":\"").size();
  const std::string other = table[digit] == '1' ? "2" : "1";
  CHECK(contains(with(table.substr(digit - 3, 4), table.substr(digit - 3, 3) + other),
                 "has a fingerprint that is not the sum of its parts"));
  CHECK(contains(with(",72,0,0]", ",72,0]"), "has a weight of \"norms and biases\" that is not whole"));
}

TEST_CASE("a packed file of another model is refused with the first difference") {
  const PackedDirectory directory(kOdd);
  const auto other = [&](std::string_view from, std::string_view to) {
    std::string text = kOdd;
    text.replace(text.find(from), from.size(), to);
    std::ofstream(directory.path() / "config.json") << text;
    const Error error = error_of(directory);
    CHECK(error.code == ErrorCode::kBadInput);
    CHECK(contains(error, "config.json and weights do not belong together"));
    return error;
  };
  CHECK(contains(other("\"vocab_size\":337", "\"vocab_size\":336"),
                 "expected \"model.embed_tokens.weight\" [336, 72] by config.json, file has "
                 "\"model.embed_tokens.weight\" [337, 72]"));
  CHECK(contains(other("\"num_experts\":5", "\"num_experts\":6"), "parts by config.json, file has 12"));
  CHECK(contains(other("\"attention_bias\":true", "\"attention_bias\":false"),
                 "part 0: expected \"norms and biases\" with 9 weights by config.json, file has \"norms and biases\" "
                 "with 13"));
  CHECK(contains(other("\"hidden_size\":72", "\"hidden_size\":70"),
                 "expected \"model.layers.0.input_layernorm.weight\" [70]"));
}

TEST_CASE("packing that fails or is interrupted leaves nothing, and overwrites nothing") {
  const checkpoint::TemporaryDirectory directory;
  const auto config = model::parse_model_config(*parse_json(kOdd, "config"));
  const auto model = model::create_model(*config, model::Placement::even(1));
  const auto topology = numa::Topology::detect();
  const auto team = numa::Team::create(*topology, {.threads = 1, .nodes = 1});
  const auto path = directory.path() / checkpoint::kPackedName;
  const FillWeights nothing = [](std::span<const model::WeightSpec>) { return Result<void>{}; };
  const FillWeights failing = [](std::span<const model::WeightSpec>) -> Result<void> {
    return fail(ErrorCode::kRuntime, "no weights today");
  };
  const auto failed = write_packed(**model, failing, path, **team, *topology);
  REQUIRE(!failed);
  CHECK(failed.error().message == "no weights today");
  const std::atomic<bool> cancel = true;
  const auto interrupted = write_packed(**model, nothing, path, **team, *topology, {.cancel = &cancel});
  REQUIRE(!interrupted);
  CHECK(interrupted.error().code == ErrorCode::kInterrupted);
  CHECK(interrupted.error().message == "packing was interrupted; the unfinished file is removed");
  CHECK(std::filesystem::is_empty(directory.path()));
  const auto missing = write_packed(**model, nothing, directory.path() / "no" / "where", **team, *topology);
  REQUIRE(!missing);
  CHECK(missing.error().code == ErrorCode::kNotFound);

  directory.write(checkpoint::kPackedName, "mine");
  const auto taken = write_packed(**model, nothing, path, **team, *topology);
  REQUIRE(!taken);
  CHECK(taken.error().message == path.string() + ": cannot be created: File exists");
  CHECK(std::filesystem::file_size(path) == 4);
}

TEST_CASE("reading stops when asked to, and says what failed") {
  const PackedDirectory directory(kOdd);
  const std::atomic<bool> cancel = true;
  const auto cancelled = read_back(directory.path(), 1, 2, true, &cancel);
  REQUIRE(!cancelled);
  CHECK(cancelled.error().code == ErrorCode::kInterrupted);

  // A file that becomes shorter after it was opened.
  const auto checkpoint = checkpoint::Checkpoint::open(directory.path());
  const auto config = model::parse_model_config(checkpoint->config());
  const auto model = model::create_model(*config, model::Placement::even(1));
  const auto file = PackedFile::open(directory.file());
  REQUIRE(file);
  const auto layout = file->layout_for(**model);
  const auto topology = numa::Topology::detect();
  const auto team = numa::Team::create(*topology, {.threads = 2, .nodes = 1});
  const auto memory = allocate_weights(**model, 1, *topology);
  std::filesystem::resize_file(directory.file(), static_cast<uintmax_t>(file->data_offset() + layout->bytes / 2));
  const auto read = read_packed(*file, *layout, layout->parts, **team, *topology);
  REQUIRE(!read);
  CHECK(read.error().code == ErrorCode::kRuntime);
  CHECK(contains(read.error(), directory.file().string() + ": cannot read "));
  CHECK(contains(read.error(), "the file ends at byte "));
  CHECK(contains(read.error(), "(reading layer "));
}
