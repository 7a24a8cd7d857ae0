// cpuinfer score: the probability of a given text, token by token (teacher forcing).
#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "base/format.h"
#include "base/json.h"
#include "base/log.h"
#include "engine/checkpoint/checkpoint_file.h"
#include "engine/load/expert_usage.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/npy.h"
#include "tools/output.h"
#include "tools/progress.h"
#include "tools/session.h"
#include "tools/signals.h"

namespace cpuinfer::tools {
namespace {

/// Most memory for the logits of one step; a step is shortened to that.
constexpr int64_t kMaxLogitBytes = 256_MiB;

/// FNV-1a, 64 bits (Fowler, Noll, Vo; draft-eastlake-fnv).
class Fnv1a {
 public:
  void add(std::span<const float> values) {
    const unsigned char* bytes = reinterpret_cast<const unsigned char*>(values.data());
    for (size_t i = 0; i < values.size_bytes(); ++i) hash_ = (hash_ ^ bytes[i]) * 0x100000001b3u;
  }
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0xcbf29ce484222325u;
};

/// What a text amounts to.
struct Score {
  int64_t tokens = 0;
  int64_t scored = 0;          // tokens with a predecessor: all but the first
  double nll = 0;              // negative natural logarithm of the probability of the scored tokens; NaN after a NaN
  std::optional<int64_t> nan;  // first token whose logits hold a NaN
  uint64_t logits_hash = 0;
  double seconds = 0;

  double mean_nll() const { return scored > 0 ? nll / static_cast<double>(scored) : 0; }
};

Result<std::vector<TokenId>> input_tokens(const ScoreOptions& options, const std::filesystem::path& directory) {
  if (options.ids_file) {
    TRY_ASSIGN(const std::string text, checkpoint::read_whole_file(*options.ids_file, kMaxTextBytes));
    return parse_ids(text, *options.ids_file);
  }
  TRY_ASSIGN(const checkpoint::Tokenizer tokenizer, checkpoint::Tokenizer::open(directory));
  TRY_ASSIGN(const std::string text, read_text(options.file.value_or("-")));
  std::vector<TokenId> tokens = tokenizer.encode(text);
  TRY(check_cancel());
  return tokens;
}

Result<void> check_tokens(const std::vector<TokenId>& tokens, const run::Engine& engine) {
  if (tokens.empty()) return fail(ErrorCode::kUsage, "the text is empty: there is nothing to score");
  if (static_cast<int64_t>(tokens.size()) > engine.context_tokens()) {
    return fail(ErrorCode::kUsage, format("the text has {} tokens and the context {}; shorten the text or raise --ctx",
                                          tokens.size(), engine.context_tokens()));
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= engine.config().vocab)
      return fail(ErrorCode::kUsage, format("token {} of the text has the id {}; the model's vocabulary has {}", i,
                                            tokens[i], engine.config().vocab));
  }
  return {};
}

Result<Score> score_tokens(run::Engine& engine, const std::vector<TokenId>& tokens, NpyWriter* logits_file,
                           Console& console) {
  Score score;
  score.tokens = static_cast<int64_t>(tokens.size());
  score.scored = score.tokens - 1;
  Fnv1a hash;
  Result<void> written;
  Progress progress(console, "scoring", ProgressUnit::kTokens);
  run::AppendOptions append;
  append.logit_rows = run::LogitRows::kAll;
  append.cancel = &cancel_flag();
  append.progress = [&](int64_t done, int64_t total) { progress.update(done, total); };
  append.logits = [&](int64_t first, std::span<const std::span<const float>> rows) {
    for (size_t i = 0; i < rows.size(); ++i) {
      const int64_t position = first + static_cast<int64_t>(i);
      hash.add(rows[i]);
      if (!score.nan && std::any_of(rows[i].begin(), rows[i].end(), [](float x) { return std::isnan(x); }))
        score.nan = position;
      if (position + 1 < score.tokens) score.nll -= run::log_probability(rows[i], tokens[position + 1]);
      if (logits_file != nullptr && written) written = logits_file->append(rows[i]);
    }
    if (!written) raise_cancel(0);  // no use in computing what cannot be written
  };
  TRY_ASSIGN(run::Sequence sequence, engine.start_sequence(score.tokens));
  report_rope(engine, sequence, "text", console);
  const auto started = std::chrono::steady_clock::now();
  const Result<void> appended = engine.append(sequence, tokens, append);
  score.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  TRY(written);
  TRY(appended);
  if (logits_file != nullptr) TRY(logits_file->finish());
  score.logits_hash = hash.value();
  if (score.nan) score.nll = std::numeric_limits<double>::quiet_NaN();
  return score;
}

std::string json_text(const Score& score, const run::Engine& engine) {
  Json json;
  json.set("tokens", score.tokens);
  json.set("scored_tokens", score.scored);
  json.set("nll", score.nll);  // null if there was a NaN
  json.set("mean_nll", score.mean_nll());
  json.set("perplexity", std::exp(score.mean_nll()));
  json.set("first_nan_token", score.nan ? Json(*score.nan) : Json());
  json.set("seconds", score.seconds);
  json.set("logits_hash", format("{:016x}", score.logits_hash));
  json.set("profile", kernels::profile_name(engine.kernels().profile));
  json.set("numerics_version", model::kNumericsVersion);
  return to_json_text(json, 2) + "\n";
}

std::string table_text(const Score& score) {
  return format("tokens       {}\n", score.tokens) +
         format("nll          {:.6f} nats over {} tokens\n", score.nll, score.scored) +
         format("mean nll     {:.6f} nats per token\n", score.mean_nll()) +
         format("perplexity   {:.6f}\n", std::exp(score.mean_nll())) +
         format("time         {:.2f} s, {:.1f} tokens/s\n", score.seconds,
                static_cast<double>(score.tokens) / std::max(score.seconds, 1e-9)) +
         format("logits hash  {:016x}\n", score.logits_hash);
}

}  // namespace

Result<int> score_command(const ScoreOptions& options) {
  Console console(options.console);
  // The rows of a step depend on the text and the vocabulary, the memory plan on the rows: hence two rounds of the
  // cheap part.
  ModelOptions model = options.model;
  TRY_ASSIGN(std::unique_ptr<run::Engine> engine, prepare_engine(model));
  TRY_ASSIGN(const std::vector<TokenId> tokens, input_tokens(options, engine->checkpoint().directory()));
  TRY(check_tokens(tokens, *engine));
  if (options.usage_file && engine->config().experts == 0)
    return fail(ErrorCode::kUsage,
                format("--write-expert-usage {}: this model is dense, it has no experts", *options.usage_file));
  const int64_t most_rows = std::max<int64_t>(1, kMaxLogitBytes / (int64_t{4} * engine->config().vocab));
  const int64_t rows = std::min<int64_t>({model.engine.chunk_tokens, most_rows, static_cast<int64_t>(tokens.size())});
  if (most_rows < std::min<int64_t>(model.engine.chunk_tokens, static_cast<int64_t>(tokens.size())))
    log_debug("steps of {} tokens instead of {}: {} of logits are the limit", rows, model.engine.chunk_tokens,
              format_bytes(kMaxLogitBytes));
  model.engine.chunk_tokens = model.engine.logit_rows = static_cast<int>(rows);
  TRY_ASSIGN(engine, prepare_engine(model));

  TRY(load_engine(*engine, {}, console));
  std::optional<NpyWriter> logits_file;
  if (options.logits_file) {
    TRY_ASSIGN(NpyWriter writer,
               NpyWriter::create(*options.logits_file, static_cast<int64_t>(tokens.size()), engine->config().vocab));
    logits_file.emplace(std::move(writer));
  }
  TRY_ASSIGN(const Score score, score_tokens(*engine, tokens, logits_file ? &*logits_file : nullptr, console));
  TRY(write_stdout(options.json ? json_text(score, *engine) : table_text(score)));
  if (options.usage_file) TRY(load::write_expert_usage(*options.usage_file, engine->expert_usage()));
  if (score.nan) {
    return fail(ErrorCode::kRuntime, format("first NaN at token {}: the weights of this checkpoint are broken, or its "
                                            "activations overflow",
                                            *score.nan));
  }
  return kExitOk;
}

}  // namespace cpuinfer::tools
