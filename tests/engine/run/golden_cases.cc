#include "tests/engine/run/golden_cases.h"

#include <fstream>
#include <sstream>

#include "base/format.h"
#include "base/json.h"

namespace cpuinfer::run {
namespace {

const std::filesystem::path kGoldens = std::filesystem::path(CPUINFER_SOURCE_DIR) / "tests/data/goldens";

Result<std::string> read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return fail(ErrorCode::kNotFound, path.string());
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

template <typename T>
Result<std::vector<T>> read_values(const std::filesystem::path& path) {
  TRY_ASSIGN(const std::string bytes, read_file(path));
  std::vector<T> values(bytes.size() / sizeof(T));
  std::copy_n(bytes.data(), values.size() * sizeof(T), reinterpret_cast<char*>(values.data()));
  return values;
}

Result<GoldenCase> load_case(const Json& entry) {
  GoldenCase golden;
  golden.name = entry.find("name")->as_string();
  golden.covers = entry.find("covers")->as_string();
  golden.checkpoint = kGoldens / entry.find("checkpoint")->as_string();
  if (entry.find("experts")->is_int()) golden.experts = static_cast<int>(entry.find("experts")->as_int());
  TRY_ASSIGN(golden.tokens, read_values<TokenId>(kGoldens / entry.find("tokens")->as_string()));
  TRY_ASSIGN(golden.reference, read_values<float>(kGoldens / entry.find("logits")->as_string()));
  TRY_ASSIGN(const std::string text, read_file(kGoldens / entry.find("golden")->as_string()));
  TRY_ASSIGN(const Json expected, parse_json(text, golden.name));
  golden.vocab = static_cast<int>(expected.find("vocab")->as_int());
  golden.kl_bf16_mean = expected.find("kl_bf16_mean")->as_double();
  golden.top1_bf16_agreement = expected.find("top1_bf16_agreement")->as_double();
  for (const Json& position : expected.find("positions")->as_array())
    golden.positions.push_back(static_cast<int>(position.as_int()));
  for (const Json& token : expected.find("top1_f32")->as_array())
    golden.top1_reference.push_back(static_cast<TokenId>(token.as_int()));
  if (golden.reference.size() != golden.positions.size() * golden.vocab || golden.positions.empty())
    return fail(ErrorCode::kBadInput, format("{}: logits and positions do not match", golden.name));
  return golden;
}

}  // namespace

Result<std::vector<GoldenCase>> load_golden_cases() {
  TRY_ASSIGN(const std::string text, read_file(kGoldens / "cases.json"));
  TRY_ASSIGN(const Json cases, parse_json(text, "cases.json"));
  std::vector<GoldenCase> goldens;
  for (const Json& entry : cases.as_array()) {
    TRY_ASSIGN(GoldenCase golden, load_case(entry));
    goldens.push_back(std::move(golden));
  }
  return goldens;
}

Result<std::unique_ptr<Engine>> open_golden(const GoldenCase& golden, EngineOptions options) {
  options.model = golden.checkpoint;
  options.experts = golden.experts;
  options.context_tokens = static_cast<int64_t>(golden.tokens.size());
  options.logit_rows = options.chunk_tokens;
  TRY_ASSIGN(std::unique_ptr<Engine> engine, Engine::prepare(options));
  TRY(engine->load());
  return engine;
}

Result<std::vector<float>> all_logits(Engine& engine, std::span<const TokenId> tokens) {
  TRY_ASSIGN(Sequence sequence, engine.start_sequence(static_cast<int64_t>(tokens.size())));
  std::vector<float> all;
  AppendOptions options;
  options.logit_rows = LogitRows::kAll;
  options.logits = [&](int64_t, std::span<const std::span<const float>> logits) {
    for (const std::span<const float> row : logits) all.insert(all.end(), row.begin(), row.end());
  };
  TRY(engine.append(sequence, tokens, options));
  return all;
}

}  // namespace cpuinfer::run
