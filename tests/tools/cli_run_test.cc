// Answers: prompts from everywhere, sampling, stops, log-probabilities, what goes to which stream.
#include <doctest/doctest.h>

#include <cmath>

#include "base/format.h"
#include "base/json.h"
#include "tests/tools/process.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;

namespace {

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

Arguments tiny(Arguments rest) {
  Arguments all = {"-m", tiny_model()};
  all.insert(all.end(), rest.begin(), rest.end());
  return all;
}

Outcome good(const Arguments& arguments, const ProcessOptions& options = {}) {
  const Outcome outcome = run_cpuinfer(arguments, options);
  REQUIRE_MESSAGE(outcome.exit_code == 0, outcome.err);
  return outcome;
}

std::vector<Json> json_lines(const std::string& text) {
  std::vector<Json> lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    REQUIRE(end != std::string::npos);
    const auto json = parse_json(text.substr(at, end - at), "line");
    REQUIRE_MESSAGE(json.has_value(), (json ? "" : json.error().message));
    lines.push_back(*json);
    at = end + 1;
  }
  return lines;
}

double nll_of(const std::vector<int64_t>& ids) {
  const auto file = scratch_directory() / "ids.json";
  write_file(file, format("[{}]", fmt::join(ids, ",")));
  const Outcome scored = good({"score", "-m", tiny_model(), "--ids", file.string(), "--json", "-q"});
  return parse_json(scored.out, "score")->find("nll")->as_double();
}

}  // namespace

TEST_CASE("the answer goes to stdout, everything else to stderr") {
  const Outcome run = good(tiny({"--prompt", "Hello", "-n", "12"}));
  CHECK(run.out.ends_with('\n'));
  CHECK(run.out.size() > 1);
  CHECK_FALSE(contains(run.out, "tokens/s"));
  for (const char* fact : {"model     tiny (Qwen3MoeForCausalLM)", "experts   2 of 8 per token",
                           "context   4096 tokens", "rope      default", "threads   ", "kernels   ", "sampling  greedy",
                           "loaded    ", "prefill ", "answer 12 tokens, decode ", " GB/s of weights; length\n"}) {
    INFO(fact << " in " << run.err);
    CHECK(contains(run.err, fact));
  }
  CHECK_FALSE(contains(run.err, "\033"));  // no colours into a pipe
  CHECK_FALSE(contains(run.err, "packing"));
  const Outcome verbose = good(tiny({"--prompt", "Hello", "-n", "1", "-v"}));
  CHECK(contains(verbose.err, " s per thread, "));
  CHECK(contains(verbose.err, " % straight from the disk, buffers "));
}

TEST_CASE("quiet leaves stderr empty") { CHECK(good(tiny({"--prompt", "Hello", "-n", "5", "-q"})).err.empty()); }

TEST_CASE("prompts from option, file and stdin are the same") {
  const std::string text = "First line\nsecond: caf\xc3\xa9 <|im_end|>";
  const std::string expected = good(tiny({"--prompt", text, "-n", "20"})).out;
  const auto file = scratch_directory() / "prompt.txt";
  write_file(file, text + "\n");  // one newline at the end does not count
  CHECK(good(tiny({"--prompt-file", file.string(), "-n", "20"})).out == expected);
  CHECK(pipe_cpuinfer(text + "\n", tiny({"-n", "20"})).out == expected);
  CHECK(pipe_cpuinfer(text, tiny({"-n", "20", "--prompt-file", "-"})).out == expected);
  CHECK(pipe_cpuinfer("ignored", tiny({"-n", "20", "--prompt", text})).out == expected);
  // What is no part of the template must matter to the answer's statistics: the system message is computed too.
  CHECK(contains(good(tiny({"--prompt", "a", "-n", "1"})).err, "prompt "));
  CHECK(good(tiny({"--prompt", "a", "--system", "b c d e f", "-n", "1"})).err !=
        good(tiny({"--prompt", "a", "-n", "1"})).err);
}

TEST_CASE("raw prompts are continued without a template") {
  const Outcome ids = pipe_cpuinfer("Hello\n", {"tokenize", "-m", tiny_model()});
  const size_t count = parse_json(ids.out, "ids")->as_array().size();
  const Outcome raw = pipe_cpuinfer("Hello\n", tiny({"--raw", "-n", "3"}));
  CHECK(contains(raw.err, format("prompt {} tokens", count)));
  CHECK_FALSE(contains(good(tiny({"--prompt", "Hello\n", "-n", "3"})).err, format("prompt {} tokens", count)));
}

TEST_CASE("threads, chunks and instruction sets change nothing within a profile") {
  const Arguments base = tiny({"--prompt", "The same request gives the same bits", "-n", "40", "--numerics", "dp"});
  const std::string expected = good(base).out;
  for (const Arguments& other : std::vector<Arguments>{
           {"-t", "1"}, {"-t", "3"}, {"--chunk", "1"}, {"--chunk", "7"}, {"--isa", "reference"}, {"--isa", "avx2"}}) {
    Arguments arguments = base;
    arguments.insert(arguments.end(), other.begin(), other.end());
    INFO(other[0] << " " << other[1]);
    CHECK(good(arguments).out == expected);
  }
}

TEST_CASE("seeds") {
  const auto answer = [](const char* seed) {
    return good(tiny({"--prompt", "Hello", "-n", "40", "--temp", "1", "--seed", seed})).out;
  };
  CHECK(answer("7") == answer("7"));
  CHECK(answer("7") != answer("8"));

  // A seed that was chosen is printed, and gives the same answer again.
  const Outcome chosen = good(tiny({"--prompt", "Hello", "-n", "40", "--temp", "1"}));
  const size_t at = chosen.err.find("temperature 1, seed ");
  REQUIRE(at != std::string::npos);
  const size_t start = at + std::string_view("temperature 1, seed ").size();
  const std::string seed = chosen.err.substr(start, chosen.err.find('\n', start) - start);
  CHECK(answer(seed.c_str()) == chosen.out);
}

TEST_CASE("greedy is top-k 1 is temperature 0") {
  const std::string greedy = good(tiny({"--prompt", "Hello", "-n", "30", "--greedy"})).out;
  CHECK(good(tiny({"--prompt", "Hello", "-n", "30", "--temp", "0"})).out == greedy);
  CHECK(good(tiny({"--prompt", "Hello", "-n", "30", "--temp", "1.5", "--top-k", "1", "--seed", "3"})).out == greedy);
  CHECK(good(tiny({"--prompt", "Hello", "-n", "30"})).out == greedy);  // no generation_config.json
  CHECK(contains(good(tiny({"--prompt", "Hello", "-n", "2", "--top-p", "0.5"})).err,
                 "warning: top-k, top-p and min-p change nothing"));
}

TEST_CASE("defaults come from generation_config.json") {
  const std::filesystem::path model = scratch_directory() / "sampled";
  std::filesystem::copy(tiny_model(), model);
  const auto sampling_line = [&](const char* config, Arguments extra = {}) {
    write_file(model / "generation_config.json", config);
    Arguments arguments = {"-m", model.string(), "--prompt", "Hello", "-n", "3", "--seed", "5"};
    arguments.insert(arguments.end(), extra.begin(), extra.end());
    const std::string err = good(arguments).err;
    const size_t at = err.find("sampling  ");
    REQUIRE(at != std::string::npos);
    return err.substr(at + 10, err.find('\n', at) - at - 10);
  };
  const char* qwen = R"({"do_sample":true,"temperature":0.6,"top_k":20,"top_p":0.95})";
  CHECK(sampling_line(qwen) == "temperature 0.6, top-k 20, top-p 0.95, seed 5");
  CHECK(sampling_line(qwen, {"--temp", "0.9", "--top-k", "0", "--top-p", "1"}) == "temperature 0.9, seed 5");
  CHECK(sampling_line(qwen, {"--greedy"}) == "greedy");
  CHECK(sampling_line(R"({"do_sample":false,"temperature":0.6})") == "greedy");
  CHECK(sampling_line(R"({"do_sample":true})") == "temperature 1, seed 5");
  CHECK(sampling_line(R"({"temperature":0.7})") == "temperature 0.7, seed 5");
  CHECK(sampling_line(R"({})") == "greedy");
  CHECK(sampling_line(R"({"repetition_penalty":1.5})", {"--presence-penalty", "0.5"}) ==
        "greedy, presence penalty 0.5, repetition penalty 1.5");
  write_file(model / "generation_config.json", R"({"max_new_tokens":4})");
  CHECK(contains(good({"-m", model.string(), "--prompt", "Hello"}).err, "answer 4 tokens"));
  CHECK(contains(good({"-m", model.string(), "--prompt", "Hello", "-n", "6"}).err, "answer 6 tokens"));

  // eos_token_id ends the answer: take the third token of the greedy answer for it.
  const std::vector<Json> lines = json_lines(good(tiny({"--prompt", "Hello", "-n", "8", "--json"})).out);
  write_file(model / "generation_config.json", format(R"({{"eos_token_id":[{}]}})", lines[2].find("token")->as_int()));
  const Outcome ended = good({"-m", model.string(), "--prompt", "Hello", "-n", "8"});
  CHECK(contains(ended.err, "answer 3 tokens"));
  CHECK(ended.err.ends_with("; stop\n"));
}

TEST_CASE("stop strings end the answer before themselves") {
  const std::string whole = good(tiny({"--prompt", "Hello", "-n", "60"})).out;
  size_t at = whole.size() / 3;  // a place with three letters in a row
  const auto letters = [&](size_t i) {
    return whole.substr(i, 3).find_first_not_of("abcdefghijklmnopqrstuvwxyz") == std::string::npos;
  };
  while (at + 3 < whole.size() && !letters(at)) ++at;
  REQUIRE(at + 3 < whole.size());
  const std::string stop = whole.substr(at, 3);
  const Outcome stopped = good(tiny({"--prompt", "Hello", "-n", "60", "--stop", "never appears", "--stop", stop}));
  CHECK(stopped.out == whole.substr(0, whole.find(stop)) + "\n");
  CHECK(stopped.err.ends_with("; stop\n"));
}

TEST_CASE("log-probabilities are those that score finds") {
  const Outcome ids = pipe_cpuinfer("Once upon a time", {"tokenize", "-m", tiny_model()});
  std::vector<int64_t> tokens;
  const Json prompt = parse_json(ids.out, "ids").value();
  for (const Json& id : prompt.as_array()) tokens.push_back(id.as_int());
  const double prompt_nll = nll_of(tokens);

  const Outcome run = good(tiny({"--raw", "--prompt", "Once upon a time", "-n", "25", "--json", "--logprobs", "5",
                                 "--temp", "1", "--seed", "1"}));
  const std::vector<Json> lines = json_lines(run.out);
  REQUIRE(lines.size() == 26);
  double sum = 0;
  std::string bytes;
  for (size_t i = 0; i + 1 < lines.size(); ++i) {
    const double logprob = lines[i].find("logprob")->as_double();
    sum += logprob;
    tokens.push_back(lines[i].find("token")->as_int());
    for (const Json& byte : lines[i].find("bytes")->as_array()) bytes += static_cast<char>(byte.as_int());
    const Json::Array& top = lines[i].find("top")->as_array();
    REQUIRE(top.size() == 5);
    double mass = 0;
    for (size_t j = 0; j < top.size(); ++j) {
      const double other = top[j].find("logprob")->as_double();
      if (j > 0) CHECK(other <= top[j - 1].find("logprob")->as_double());
      if (top[j].find("token")->as_int() == lines[i].find("token")->as_int()) CHECK(other == logprob);
      mass += std::exp(other);
    }
    CHECK(mass <= 1.0 + 1e-6);
    CHECK(logprob <= top[0].find("logprob")->as_double());
  }
  CHECK(nll_of(tokens) - prompt_nll == doctest::Approx(-sum).epsilon(1e-5));

  const Json& last = lines.back();
  CHECK(last.find("finish_reason")->as_string() == "length");
  CHECK(last.find("answer_tokens")->as_int() == 25);
  CHECK(last.find("seed")->as_string() == "1");
  CHECK(last.find("decode_weight_bytes")->as_int() > 0);
  CHECK(last.find("load_bytes")->as_int() >= last.find("decode_weight_bytes")->as_int());
  CHECK(last.find("load_seconds")->as_double() > 0);
  // The text is the bytes, but for bytes that are no UTF-8.
  if (!contains(last.find("text")->as_string(), "\xef\xbf\xbd")) CHECK(last.find("text")->as_string() == bytes);
}

TEST_CASE("log-probabilities as a table on stderr") {
  const Outcome plain = good(tiny({"--prompt", "Hello", "-n", "4"}));
  const Outcome table = good(tiny({"--prompt", "Hello", "-n", "4", "--logprobs", "2"}));
  CHECK(table.out == plain.out);
  CHECK(contains(table.err, "log-probability of the answer: -"));
  CHECK(contains(table.err, "(4 tokens)"));
}

TEST_CASE("experts per token and rope scaling are printed and matter") {
  const Outcome two = good(tiny({"--prompt", "Hello", "-n", "20"}));
  const Outcome eight = good(tiny({"--prompt", "Hello", "-n", "20", "--experts", "8"}));
  CHECK(contains(eight.err, "experts   8 of 8 per token (config.json says 2)"));
  CHECK(eight.out != two.out);
  CHECK(contains(good(tiny({"--prompt", "Hello", "-n", "2", "--rope-scaling", "yarn:4", "--ctx", "16k"})).err,
                 "context   16384 tokens"));
}

TEST_CASE("auto scaling says what it chooses, and for what length") {
  const auto with_length = [](const char* tokens) {
    return good(tiny({"--prompt", "Hello", "-n", tokens, "--rope-scaling", "auto", "--ctx", "16k"})).err;
  };
  const std::string some = with_length("3");
  CHECK(contains(
      some,
      "rope      auto, for each sequence: no scaling up to 4096 tokens, yarn factor 2 up to 8192, 4 up to 16384, 8"));
  CHECK(contains(some, "rope      no scaling for this sequence (prompt + answer = "));
  ProcessOptions text;
  text.input = "Some text to score.";
  CHECK(contains(good({"score", "-m", tiny_model(), "--rope-scaling", "auto"}, text).err,
                 "rope      no scaling for this sequence (text = "));
  // "Hello" and its turn are few tokens; the answer stops when the model says so, or at the signal of its end.
  const std::string long_one =
      good(tiny({"--raw", "--prompt", "Hello", "-n", "4096", "--stop", "e", "--stop", "a", "--stop", " ",
                 "--rope-scaling", "auto", "--ctx", "16k", "--temp", "5", "--seed", "1"}))
          .err;
  CHECK(contains(long_one, "rope      yarn factor 2 of 4096 for this sequence (prompt + answer = "));
}

TEST_CASE("environment variables") {
  ProcessOptions options;
  options.environment = {{"CPUINFER_MODEL", tiny_model()}, {"CPUINFER_ISA", "avx2"}, {"CPUINFER_MAX_TOKENS", "3"}};
  const Outcome run = good({"--prompt", "Hello"}, options);
  CHECK(contains(run.err, "kernels   portable"));
  CHECK(contains(run.err, "answer 3 tokens"));
  CHECK(contains(good({"--prompt", "Hello", "--isa", "reference"}, options).err, "kernels   reference"));

  options.environment = {{"CPUINFER_MODELS", std::filesystem::path(tiny_model()).parent_path().string()}};
  CHECK(contains(good({"-m", "tiny", "--prompt", "Hello", "-n", "1"}, options).err, "model     tiny"));
}
