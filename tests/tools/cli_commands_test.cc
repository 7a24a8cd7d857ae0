// plan, doctor, tokenize, detokenize, score, synth, help.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "base/format.h"
#include "base/json.h"
#include "base/types.h"
#include "tests/tools/process.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;

namespace {

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

Outcome good(const Arguments& arguments, const std::string& input = "") {
  const Outcome outcome = pipe_cpuinfer(input, arguments);
  REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
  return outcome;
}

Json json_of(const Outcome& outcome) {
  const auto json = parse_json(outcome.out, "stdout");
  REQUIRE_MESSAGE(json.has_value(), outcome.out);
  return *json;
}

std::string logits_hash(const std::string& model, Arguments extra = {}) {
  Arguments arguments = {"score", "-m", model, "--json", "-q"};
  arguments.insert(arguments.end(), extra.begin(), extra.end());
  return json_of(good(arguments, "Some text to score, long enough for several chunks."))
      .find("logits_hash")
      ->as_string();
}

// text of everything in a directory, by file name.
std::string directory_bytes(const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> files(std::filesystem::directory_iterator(directory), {});
  std::sort(files.begin(), files.end());
  std::string all;
  for (const auto& file : files) all += file.filename().string() + "\n" + read_file(file);
  return all;
}

}  // namespace

TEST_CASE("help and version") {
  CHECK(contains(good({"--help"}).out, "Commands (first argument"));
  CHECK(good({"--version"}).out.starts_with("cpuinfer "));
  CHECK(good({"version"}).out == good({"--version"}).out);
  for (const char* command : {"plan", "doctor", "tokenize", "detokenize", "score", "synth", "pack"}) {
    const std::string help = good({command, "--help"}).out;
    CHECK(contains(help, std::string("cpuinfer ") + command));
    CHECK(good({"help", command}).out == help);
  }
  for (const char* command : {"plan", "doctor", "score"}) CHECK(contains(good({command, "--help"}).out, "--json"));
}

TEST_CASE("plan tells what a model needs and whether it fits") {
  const std::string table = good({"plan", "-m", tiny_model(), "--ctx", "2k"}).out;
  CHECK(contains(table, "context   2048 tokens"));
  CHECK(contains(table, "KV cache"));
  CHECK(contains(table, "it fits"));

  // 256k is 262144.
  const auto context = [](const char* ctx) {
    return json_of(good({"plan", "-m", tiny_model(), "--rope-scaling", "yarn:64:4096", "--ctx", ctx, "--json"}))
        .find("context_tokens")
        ->as_int();
  };
  CHECK(context("256k") == 262144);
  CHECK(context("262144") == 262144);

  const Outcome tight = run_cpuinfer({"plan", "-m", tiny_model(), "--memory-limit", "1MiB"});
  CHECK(tight.exit_code == 78);
  CHECK(contains(tight.out, "it does not fit: the plan needs "));
  const Outcome tight_json = run_cpuinfer({"plan", "-m", tiny_model(), "--memory-limit", "1MiB", "--json"});
  CHECK(tight_json.exit_code == 78);
  CHECK_FALSE(json_of(tight_json).find("fits")->as_bool());
  CHECK(json_of(tight_json).find("shortages")->as_array().size() == 1);

  CHECK(run_cpuinfer({"plan", "-m", "/nonexistent"}).exit_code == 66);
}

TEST_CASE("doctor") {
  const Outcome text = run_cpuinfer({"doctor"});
  CHECK(text.exit_code == 0);
  CHECK(contains(text.out, "cpu"));
  CHECK(contains(text.out, "kernels"));
  const Json json = json_of(good({"doctor", "--json"}));
  CHECK(json.find("checks")->as_array().size() > 5);
  CHECK(contains(good({"doctor", "--isa", "avx2"}).out, "portable"));
  CHECK(run_cpuinfer({"doctor", "--isa", "sse9"}).exit_code == 2);
}

TEST_CASE("doctor --placement loads a model and counts its pages") {
  for (const char* policy : {"slice", "expert"}) {
    const Outcome outcome = run_cpuinfer({"doctor", "--placement", policy, "-m", CPUINFER_SOURCE_DIR "/models/demo",
                                          "--ctx", "600", "--json", "--progress", "none"});
    if (contains(outcome.err, "move_pages")) {
      MESSAGE("SKIPPED: this system does not say where memory lies");
      return;
    }
    REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
    const Json json = json_of(outcome);
    CHECK(json.find("checks")->as_array().back().find("name")->as_string() == "placement");
    int64_t pages = 0;
    for (const Json& line : json.find("placement")->as_array()) pages += line.find("planned_pages")->as_int();
    CHECK(pages > 3000);  // 11 MiB of weights alone
    CHECK(json.find("local_percent")->as_double() >= 0);
    CHECK_FALSE(json.find("workers")->as_array().empty());
  }
  CHECK(contains(run_cpuinfer({"doctor", "--placement"}).err, "no model: give --model"));
  CHECK(contains(run_cpuinfer({"doctor", "--placement", "fast", "-m", CPUINFER_SOURCE_DIR "/models/demo"}).err,
                 "--placement is 'fast'; it must be one of slice, expert"));
}

TEST_CASE("detokenize undoes tokenize") {
  const std::string text =
      "Hello, w\xc3\xb6rld!  \r\n\t 12345 \xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e "
      "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x92\xbb <|im_start|>user\n<think> done\n\n";
  const Outcome ids = good({"tokenize", "-m", tiny_model()}, text);
  CHECK(ids.err.empty());
  CHECK(good({"detokenize", "-m", tiny_model()}, ids.out).out == text);
  const Outcome plain = good({"tokenize", "-m", tiny_model(), "--no-special"}, text);
  CHECK(json_of(plain).as_array().size() > json_of(ids).as_array().size());
  CHECK(good({"detokenize", "-m", tiny_model()}, plain.out).out == text);
  CHECK_FALSE(contains(good({"detokenize", "-m", tiny_model(), "--no-special"}, ids.out).out, "<|im_start|>"));
  CHECK(good({"tokenize", "-m", tiny_model()}).out == "[]\n");
  CHECK(good({"detokenize", "-m", tiny_model()}, "[]").out.empty());
}

TEST_CASE("detokenize checks its input") {
  const auto error = [](const char* input) {
    const Outcome outcome = pipe_cpuinfer(input, {"detokenize", "-m", tiny_model()});
    CHECK(outcome.exit_code == 78);
    CHECK(outcome.out.empty());
    return outcome.err;
  };
  CHECK(contains(error("[1,2"), "stdin"));
  CHECK(contains(error("{}"), "expected a JSON array of token ids, found object"));
  CHECK(contains(error("[1,\"a\"]"), "element 1 is \"a\", not a token id"));
  CHECK(contains(error("[1,2.5]"), "element 1 is 2.5, not a token id"));
  CHECK(contains(error("[-1]"), "element 0 is -1, not a token id"));
  CHECK(contains(error("[1,100000]"), "element 1 is 100000; this tokenizer's ids end at 1411"));
}

TEST_CASE("score: one hash whatever the chunk and the threads") {
  const std::string hash = logits_hash(tiny_model());
  CHECK(hash.size() == 16);
  for (const char* chunk : {"1", "7", "256"}) CHECK(logits_hash(tiny_model(), {"--chunk", chunk}) == hash);
  for (const char* threads : {"1", "3"}) CHECK(logits_hash(tiny_model(), {"-t", threads}) == hash);
  CHECK(logits_hash(tiny_model(), {"--experts", "3"}) != hash);
}

TEST_CASE("score: the numbers agree with the logits it writes") {
  const std::string ids_text = "[5, 1, 700, 33, 1400, 8, 8, 12]";
  const std::vector<int> ids = {5, 1, 700, 33, 1400, 8, 8, 12};
  constexpr int64_t kVocab = 1536;
  const auto ids_file = scratch_directory() / "score_ids.json", npy_file = scratch_directory() / "logits.npy";
  write_file(ids_file, ids_text);
  const Json score = json_of(good({"score", "-m", tiny_model(), "--ids", ids_file.string(), "--logits",
                                   npy_file.string(), "--json", "--chunk", "3"}));

  const std::string npy = read_file(npy_file);
  REQUIRE(npy.size() > 128);
  CHECK(npy.substr(0, 8) == std::string("\x93NUMPY\x01\x00", 8));
  const size_t header = 10 + static_cast<unsigned char>(npy[8]) + 256 * static_cast<unsigned char>(npy[9]);
  CHECK(header % 64 == 0);
  CHECK(npy[header - 1] == '\n');
  CHECK(contains(npy.substr(0, header), "{'descr': '<f4', 'fortran_order': False, 'shape': (8, 1536), }"));
  REQUIRE(npy.size() == header + ids.size() * kVocab * 4);

  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = header; i < npy.size(); ++i) hash = (hash ^ static_cast<unsigned char>(npy[i])) * 0x100000001b3u;
  CHECK(score.find("logits_hash")->as_string() == format("{:016x}", hash));

  std::vector<float> logits(ids.size() * kVocab);
  std::memcpy(logits.data(), npy.data() + header, logits.size() * 4);
  double nll = 0;
  for (size_t i = 0; i + 1 < ids.size(); ++i) {
    double sum = 0;
    for (int64_t v = 0; v < kVocab; ++v) sum += std::exp(static_cast<double>(logits[i * kVocab + v]));
    nll += std::log(sum) - static_cast<double>(logits[i * kVocab + ids[i + 1]]);
  }
  CHECK(score.find("nll")->as_double() == doctest::Approx(nll));
  CHECK(score.find("mean_nll")->as_double() == doctest::Approx(nll / 7));
  CHECK(score.find("perplexity")->as_double() == doctest::Approx(std::exp(nll / 7)));
  CHECK(score.find("tokens")->as_int() == 8);
  CHECK(score.find("first_nan_token")->is_null());
  // Only the finished file is there.
  for (const auto& entry : std::filesystem::directory_iterator(scratch_directory()))
    CHECK_FALSE(contains(entry.path().string(), ".tmp-"));

  const std::string table = good({"score", "-m", tiny_model(), "--ids", ids_file.string()}).out;
  CHECK(contains(table, "perplexity   "));
  CHECK(contains(table, score.find("logits_hash")->as_string()));
}

TEST_CASE("score: how often experts were chosen, and whole experts balanced by it give the same bits") {
  const std::string model = CPUINFER_SOURCE_DIR "/models/demo";
  const std::string usage = (scratch_directory() / "usage.json").string();
  const std::string hash = logits_hash(model, {"--write-expert-usage", usage});
  const auto json = parse_json(read_file(usage), usage);
  REQUIRE(json);
  const Json::Array& layers = json->find("layers")->as_array();
  CHECK(layers.size() == 5);
  const size_t tokens =
      json_of(good({"tokenize", "-m", model}, "Some text to score, long enough for several chunks.")).as_array().size();
  for (const Json& layer : layers) {
    double sum = 0;
    for (const Json& count : layer.as_array()) sum += count.as_double();
    CHECK(layer.as_array().size() == 16);
    CHECK(sum == static_cast<double>(4 * tokens));
  }
  CHECK(logits_hash(model, {"--simulate-nodes", "3", "-t", "4", "--placement", "expert", "--expert-usage", usage}) ==
        hash);
  CHECK(logits_hash(model, {"--simulate-nodes", "3", "-t", "4"}) == hash);

  const Outcome nowhere = pipe_cpuinfer("text", {"score", "-m", model, "--write-expert-usage", "/nonexistent/usage"});
  CHECK(nowhere.exit_code != 0);
  CHECK(contains(nowhere.err, "/nonexistent"));
  const auto ids = scratch_directory() / "dense.json";
  write_file(ids, "[1, 2]");
  const Outcome dense = run_cpuinfer({"score", "-m", CPUINFER_SOURCE_DIR "/tests/data/goldens/dense_basic", "--ids",
                                      ids.string(), "--write-expert-usage", usage});
  CHECK(dense.exit_code == 2);
  CHECK(contains(dense.err, "this model is dense, it has no experts"));
}

TEST_CASE("score: text from a file is text from stdin") {
  const auto file = scratch_directory() / "text.txt";
  write_file(file, "Some text to score, long enough for several chunks.");
  CHECK(json_of(good({"score", "-m", tiny_model(), "--file", file.string(), "--json"}))
            .find("logits_hash")
            ->as_string() == logits_hash(tiny_model()));
}

TEST_CASE("score: a checkpoint of Transformers, ids without a tokenizer") {
  const auto ids_file = scratch_directory() / "golden_ids.json";
  write_file(ids_file, "[1, 2, 3, 4, 5, 6, 7, 8]");
  for (const char* golden : {"moe_basic", "moe_sharded", "dense_float32"}) {
    const Json score = json_of(good({"score", "-m", golden_model(golden), "--ids", ids_file.string(), "--json"}));
    CHECK(score.find("nll")->as_double() > 0);
  }
  write_file(ids_file, "[1, 2, 100000]");
  const Outcome outside = run_cpuinfer({"score", "-m", golden_model("moe_basic"), "--ids", ids_file.string()});
  CHECK(outside.exit_code == 2);
  CHECK(contains(outside.err, "token 2 of the text has the id 100000; the model's vocabulary has 72"));
}

TEST_CASE("score: logits that cannot be written") {
  const Outcome outcome = pipe_cpuinfer("text", {"score", "-m", tiny_model(), "--logits", "/nonexistent/logits.npy"});
  CHECK(outcome.exit_code == 66);
  CHECK(contains(outcome.err, "/nonexistent/logits.npy: cannot create a temporary file beside it"));
}

TEST_CASE("synth is deterministic by seed") {
  const auto directory = [](const char* name) { return (scratch_directory() / name).string(); };
  good({"synth", "tiny", "-o", directory("a")});
  good({"synth", "tiny", "-o", directory("b"), "-t", "1"});
  good({"synth", "tiny", "-o", directory("c"), "--seed", "1"});
  CHECK(directory_bytes(directory("a")) == directory_bytes(directory("b")));
  CHECK(directory_bytes(directory("a")) != directory_bytes(directory("c")));
  CHECK(read_file(directory("a") + "/config.json") == read_file(directory("c") + "/config.json"));
}

TEST_CASE("synth: shards hold the same weights") {
  const std::string sharded = (scratch_directory() / "sharded").string();
  const Outcome made = good({"synth", "tiny", "-o", sharded, "--shard-size", "100k", "-t", "3", "--tokenizer",
                             CPUINFER_SOURCE_DIR "/tests/data/tokenizer/small"});
  CHECK(contains(made.err, " tensors, "));
  CHECK(std::filesystem::exists(sharded + "/model.safetensors.index.json"));
  CHECK_FALSE(std::filesystem::exists(sharded + "/model.safetensors"));
  CHECK(logits_hash(sharded) == logits_hash(tiny_model()));
}

TEST_CASE("synth: types, layers, configs") {
  const auto ids_file = scratch_directory() / "synth_ids.json";
  write_file(ids_file, "[5, 1, 700, 33]");
  const auto nll = [&](const std::string& model) {
    return json_of(good({"score", "-m", model, "--ids", ids_file.string(), "--json", "-q"})).find("nll")->as_double();
  };
  // float32 and float16 weights are the same numbers with more digits: nearly the same answer.
  const std::string f32 = (scratch_directory() / "f32").string(), f16 = (scratch_directory() / "f16").string();
  const Outcome as_f32 = good({"synth", "tiny", "-o", f32, "--dtype", "f32"});
  good({"synth", "tiny", "-o", f16, "--dtype", "f16"});
  CHECK(nll(f32) == doctest::Approx(nll(tiny_model())).epsilon(1e-3));
  CHECK(nll(f16) == doctest::Approx(nll(tiny_model())).epsilon(1e-3));
  CHECK(std::filesystem::file_size(f32 + "/model.safetensors") >
        19 * std::filesystem::file_size(f16 + "/model.safetensors") / 10);

  // A published model with few layers, and any config.
  const std::string layers = (scratch_directory() / "layers").string();
  good({"synth", "qwen3-0.6b", "--layers", "1", "-o", layers});
  CHECK(contains(good({"plan", "-m", layers, "--ctx", "1k"}).out, "(Qwen3ForCausalLM), 1 layers"));
  const std::string from_config = (scratch_directory() / "from_config").string();
  good({"synth", "--config", golden_model("moe_many_experts") + "/config.json", "-o", from_config});
  write_file(ids_file, "[5, 1]");
  CHECK(nll(from_config) > 0);
}

TEST_CASE("synth: a config with both spellings of dtype gets both changed") {
  const auto both = scratch_directory() / "both_spellings.json";
  write_file(both, R"({"architectures":["Qwen3ForCausalLM"],"hidden_size":16,"num_hidden_layers":1,
    "num_attention_heads":2,"num_key_value_heads":1,"head_dim":8,"vocab_size":32,"intermediate_size":16,
    "tie_word_embeddings":true,"max_position_embeddings":64,"dtype":"bfloat16","torch_dtype":"bfloat16"})");
  const auto target = scratch_directory() / "both_spellings";
  good({"synth", "--config", both.string(), "-o", target.string(), "--dtype", "f32"});
  const auto config = parse_json(read_file(target / "config.json"), "config.json");
  REQUIRE(config);
  CHECK(config->find("dtype")->as_string() == "float32");
  CHECK(config->find("torch_dtype")->as_string() == "float32");
}

TEST_CASE("synth: what can go wrong") {
  const auto error = [](const Arguments& arguments, int code) {
    const Outcome outcome = run_cpuinfer(arguments);
    CHECK_MESSAGE(outcome.exit_code == code, outcome.err);
    return outcome.err;
  };
  const std::string target = (scratch_directory() / "target").string();
  CHECK(contains(error({"synth", "qwen3-30b", "-o", target}, 2),
                 "unknown model 'qwen3-30b'; did you mean 'qwen3-30b-a3b'?; known are qwen3-0.6b, "));
  CHECK(contains(error({"synth", "tiny", "--layers", "1025", "-o", target}, 2), "a whole number between 1 and 1024"));
  CHECK(contains(error({"synth", "tiny", "-o", tiny_model()}, 2), "is not empty; nothing is overwritten"));
  CHECK(contains(error({"synth", "--config", "/nonexistent", "-o", target}, 66), "/nonexistent"));
  CHECK(contains(error({"synth", "tiny", "-o", target, "--tokenizer", "/nonexistent"}, 66), "tokenizer.json"));
  CHECK(contains(error({"synth", "--config", golden_model("moe_basic") + "/config.json", "-o", target, "--tokenizer",
                        CPUINFER_SOURCE_DIR "/tests/data/tokenizer/small"},
                       2),
                 "token ids up to 1411, but the model's vocabulary has 72"));
  const auto bad = scratch_directory() / "bad.json";
  write_file(bad, "[]");
  CHECK(contains(error({"synth", "--config", bad.string(), "-o", target}, 78), "expected a JSON object"));
  CHECK(contains(error({"synth", "qwen3-coder-480b-a35b", "-o", target}, 1), "and the file system has "));
  CHECK(contains(error({"synth", "tiny", "-o", "/proc/cpuinfer"}, 1), "/proc/cpuinfer: cannot make this directory"));
  CHECK((!std::filesystem::exists(target) || std::filesystem::is_empty(target)));
}
