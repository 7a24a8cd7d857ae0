#include "tools/session.h"

#include <algorithm>
#include <cstdlib>
#include <random>
#include <utility>

#include "base/format.h"
#include "base/json.h"
#include "base/log.h"
#include "bench/disk.h"
#include "engine/checkpoint/checkpoint_file.h"
#include "engine/checkpoint/model_directory.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/signals.h"
#include "tools/synth_configs.h"

namespace cpuinfer::tools {
namespace {

std::optional<std::string> environment_variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::nullopt : std::optional<std::string>(value);
}

// eos_token_id of config.json: a number, a list of numbers, or nothing.
std::vector<TokenId> config_eos(const Json& config) {
  std::vector<TokenId> tokens;
  const auto take = [&](const Json& value) {
    if (value.is_int() && value.as_int() >= 0 && value.as_int() <= INT32_MAX)
      tokens.push_back(static_cast<TokenId>(value.as_int()));
  };
  if (const Json* value = config.find("eos_token_id"); value != nullptr) {
    if (value->is_array())
      std::for_each(value->as_array().begin(), value->as_array().end(), take);
    else
      take(*value);
  }
  return tokens;
}

// Tokens per second, or "-" where nothing was measured.
std::string speed(int64_t tokens, double seconds) {
  return tokens > 0 && seconds > 0 ? format("{:.1f} tokens/s", static_cast<double>(tokens) / seconds) : "- tokens/s";
}

// Before the first token: what pages on disk will cost, by the disk as it is now.
Result<void> report_cold_speed(run::Engine& engine, Console& console) {
  const int64_t tokens = engine.context_tokens() - engine.memory_tokens();
  const double bytes = static_cast<double>(engine.plan().kv_bytes_per_token * std::max<int64_t>(tokens, 0));
  const std::filesystem::path& directory = engine.kv_store()->pages().directory();
  const auto disk = bench::measure_disk(
      engine.topology(), {.model = {}, .directory = directory, .temporary_bytes = 256_MiB, .seconds = 0.5},
      {.cancel = &cancel_flag()});
  if (!disk && disk.error().code == ErrorCode::kInterrupted) return std::unexpected(disk.error());
  console.line(format("kv tier   {} tokens in memory; a context of {} has {:.1f} GB on disk for every token{}",
                      engine.memory_tokens(), engine.context_tokens(), bytes / 1e9,
                      disk ? format(": at {:.2f} GB/s {:.2g} tokens/s at the most",
                                    disk->winner().bytes_per_second / 1e9, disk->winner().bytes_per_second / bytes)
                           : ""));
  return {};
}

}  // namespace

Result<std::filesystem::path> resolve_model(const std::string& name) {
  return checkpoint::find_model(name, checkpoint::standard_model_search(environment_variable));
}

Result<run::SyntheticModel> synthetic_model(const std::string& name, std::optional<int> layers, uint64_t seed) {
  TRY_ASSIGN(Json config, named_config(name));
  if (layers) config.set("num_hidden_layers", *layers);
  return run::SyntheticModel{name, std::move(config), seed};
}

Result<std::unique_ptr<run::Engine>> prepare_engine(const ModelOptions& options) {
  run::EngineOptions engine = options.engine;
  TRY_ASSIGN(engine.model, resolve_model(options.model));
  return run::Engine::prepare(engine);
}

Result<void> load_engine(run::Engine& engine, const std::vector<std::string>& facts, Console& console) {
  TRY(engine.plan().check());
  for (const std::string& line : engine.describe()) console.line(line);
  for (const std::string& line : facts) console.line(line);
  {
    std::optional<Progress> progress(std::in_place, console, "loading", ProgressUnit::kBytes);
    bool taking_pages = false;
    TRY(engine.load({.progress = [&](int64_t done, int64_t total) { progress->update(done, total); },
                     .page_progress =
                         [&](int64_t done, int64_t total) {
                           if (!std::exchange(taking_pages, true))
                             progress.emplace(console, "memory", ProgressUnit::kBytes);
                           progress->update(done, total);
                         },
                     .cancel = &cancel_flag()}));
  }
  report_placement(engine, console, true);
  if (engine.cold_stream() != nullptr) TRY(report_cold_speed(engine, console));
  if (const load::LoadStatistics& load = engine.load_statistics(); load.bytes > 0) {  // read, not made
    console.line(format("loaded    {:.2f} GB in {:.2f} s, {:.2f} GB/s", static_cast<double>(load.bytes) / 1e9,
                        load.seconds, static_cast<double>(load.bytes) / load.seconds / 1e9));
    log_debug("loaded    reading {:.2f} s and packing {:.2f} s per thread, {:.0f} % straight from the disk, buffers {}",
              load.read_seconds / load.workers, load.pack_seconds / load.workers,
              100 * static_cast<double>(load.direct_bytes) / static_cast<double>(load.bytes),
              format_bytes(load.buffer_bytes));
  }
  const run::PageStatistics& pages = engine.page_statistics();
  console.line(format("memory    {:.2f} GB for KV cache and workspace taken in {:.2f} s, {:.2f} GB/s",
                      static_cast<double>(pages.bytes) / 1e9, pages.seconds,
                      static_cast<double>(pages.bytes) / pages.seconds / 1e9));
  return {};
}

void report_placement(run::Engine& engine, Console& console, bool loaded) {
  if (engine.topology().nodes().size() == 1 && !engine.topology().binds_memory()) return;
  const Result<run::PlacementReport> report = engine.measure_placement();
  if (!report)
    log_warn("placement is not known: {}", report.error().message);
  else if (!report->is_good())
    log_warn("placement {}", report->sentence());
  else if (loaded)
    console.line(format("placed    {}", report->sentence()));
  else
    log_debug("placement {}", report->sentence());
}

void report_rope(const run::Engine& engine, const run::Sequence& sequence, std::string_view length, Console& console) {
  if (!engine.config().rope_by_length) return;
  const model::RopeConfig& rope = sequence.rope();
  const std::string chosen = rope.type == model::RopeType::kDefault
                                 ? "no scaling"
                                 : format("yarn factor {} of {}", rope.factor, rope.original_max_positions.value_or(0));
  console.line(format("rope      {} for this sequence ({} = {} tokens)", chosen, length, sequence.planned_tokens()));
}

Result<run::SamplingParams> choose_sampling(const SamplingOptions& options, const model::GenerationDefaults& defaults) {
  run::SamplingParams params;
  // A temperature in the file without do_sample means sampling, as in the servers that ignore do_sample; do_sample
  // without a temperature means 1, as in Transformers.
  const bool file_samples = defaults.do_sample.value_or(defaults.temperature.has_value());
  const float file_temperature = file_samples ? defaults.temperature.value_or(1.0f) : 0.0f;
  params.temperature = options.greedy ? 0.0f : options.temperature.value_or(file_temperature);
  params.top_k = options.top_k.value_or(defaults.top_k.value_or(params.top_k));
  params.top_p = options.top_p.value_or(defaults.top_p.value_or(params.top_p));
  params.min_p = options.min_p.value_or(defaults.min_p.value_or(params.min_p));
  params.presence_penalty = options.presence_penalty.value_or(params.presence_penalty);
  params.frequency_penalty = options.frequency_penalty.value_or(params.frequency_penalty);
  params.repetition_penalty =
      options.repetition_penalty.value_or(defaults.repetition_penalty.value_or(params.repetition_penalty));
  if (options.seed) {
    params.seed = *options.seed;
  } else if (params.temperature > 0) {
    params.seed = std::random_device()();  // 32 bits: short enough to be typed again
  }
  TRY(params.check());
  if (params.temperature == 0 && (options.top_k || options.top_p || options.min_p)) {
    log_warn("top-k, top-p and min-p change nothing: the answer is greedy{}",
             options.greedy || options.temperature ? "" : " (give --temperature to sample)");
  }
  return params;
}

std::string describe(const run::SamplingParams& s) {
  std::string text = "sampling  ";
  if (s.temperature == 0) {
    text += "greedy";
  } else {
    text += format("temperature {}", s.temperature);
    if (s.top_k > 0) text += format(", top-k {}", s.top_k);
    if (s.top_p < 1) text += format(", top-p {}", s.top_p);
    if (s.min_p > 0) text += format(", min-p {}", s.min_p);
    text += format(", seed {}", s.seed);
  }
  if (s.presence_penalty != 0) text += format(", presence penalty {}", s.presence_penalty);
  if (s.frequency_penalty != 0) text += format(", frequency penalty {}", s.frequency_penalty);
  if (s.repetition_penalty != 1) text += format(", repetition penalty {}", s.repetition_penalty);
  return text;
}

bool has_chatml(const checkpoint::Tokenizer& tokenizer) {
  return tokenizer.find("<|im_start|>").has_value() && tokenizer.find("<|im_end|>").has_value();
}

std::vector<TokenId> stop_tokens(const run::Engine& engine, const checkpoint::Tokenizer& tokenizer, bool chat) {
  std::vector<TokenId> tokens = engine.generation_defaults().eos_token_ids;
  if (tokens.empty()) {
    tokens = config_eos(engine.checkpoint().config());
    if (tokenizer.eos_token()) {
      if (const auto token = tokenizer.find(*tokenizer.eos_token())) tokens.push_back(*token);
    }
  }
  if (chat) {
    if (const auto token = tokenizer.find("<|im_end|>")) tokens.push_back(*token);
  }
  return tokens;
}

std::string statistics(const run::Engine& engine, const run::GenerationResult& result) {
  const int64_t computed = result.prefilled_tokens - result.reused.total();
  const double decode_rate =
      result.decode_seconds > 0 ? static_cast<double>(result.decoded_tokens) / result.decode_seconds : 0;
  std::string text = format("prompt {} tokens", result.prompt_tokens);
  if (result.reused.memory > 0) text += format(" ({} from cache)", result.reused.memory);
  if (result.reused.store > 0)
    text += format(" ({} from the KV store in {:.2f} s)", result.reused.store, result.restore_seconds);
  text += format(", prefill {}; ", speed(computed, result.prefill_seconds));
  text +=
      format("answer {} tokens, decode {}", result.answer.size(), speed(result.decoded_tokens, result.decode_seconds));
  if (decode_rate > 0)
    text += format(", {:.1f} GB/s of weights", decode_rate * static_cast<double>(engine.decode_weight_bytes()) / 1e9);
  if (const load::StreamStatistics stream = engine.stream_statistics(); stream.bytes > 0) {
    const double seconds = std::max(stream.step_seconds, 1e-9);
    text += format("; {:.1f} GB of weights streamed, {:.2f} GB/s", static_cast<double>(stream.bytes) / 1e9,
                   static_cast<double>(stream.bytes) / seconds / 1e9);
    if (const int64_t experts = stream.expert_hits + stream.expert_misses; experts > 0)
      text += format(", {:.0f} % of the experts were in memory",
                     100 * static_cast<double>(stream.expert_hits) / static_cast<double>(experts));
    text += format(", waited {:.0f} %", 100 * stream.wait_seconds / seconds);
  }
  if (const run::ColdStream* const cold = engine.cold_stream(); cold != nullptr && cold->statistics().bytes > 0) {
    const run::ColdStatistics read = cold->statistics();
    text += format("; {:.2f} GB of keys and values from disk, {:.1f} s waited for them",
                   static_cast<double>(read.bytes) / 1e9, read.wait_seconds);
  }
  return text + format("; {}", run::finish_reason_name(result.finish_reason));
}

int interrupted_code(const run::Engine& engine, const run::GenerationResult& result) {
  if (result.stored_tokens == 0 || result.prefilled_tokens >= result.prompt_tokens)
    return kExitSignalBase + pending_signal();
  log_line(
      LogLevel::kInfo,
      format("interrupted at {} of {} tokens of the prompt; {} of them are kept in {}, the same command goes on there",
             result.prefilled_tokens, result.prompt_tokens, result.stored_tokens,
             engine.kv_store()->pages().directory().string()));
  return kExitTryAgain;
}

Result<void> check_text_length(std::string_view text, const checkpoint::Tokenizer& tokenizer, int64_t context_tokens) {
  constexpr int64_t kComposed = 3;  // bytes of which NFC makes one, at the most: letters of a syllable of Hangul
  int64_t longest = 1;
  for (TokenId token = 0; token < tokenizer.id_limit(); ++token)
    longest = std::max(longest, static_cast<int64_t>(tokenizer.token_bytes(token).size()));
  const int64_t bytes = static_cast<int64_t>(text.size());
  if (bytes / (kComposed * longest) <= context_tokens) return {};
  return fail(
      ErrorCode::kUsage,
      format("the prompt has {} bytes, and {} tokens of context stand for {} at the most; shorten the prompt or "
             "raise --ctx",
             bytes, context_tokens, context_tokens * kComposed * longest));
}

Result<std::string> read_text(const std::string& path) {
  return path == "-" ? read_stdin(kMaxTextBytes) : checkpoint::read_whole_file(path, kMaxTextBytes);
}

Result<std::vector<TokenId>> parse_ids(std::string_view text, std::string_view where) {
  TRY_ASSIGN(const Json json, parse_json(text, where));
  if (!json.is_array())
    return fail(ErrorCode::kBadInput,
                format("{}: expected a JSON array of token ids, found {}", where, json.kind_name()));
  std::vector<TokenId> ids;
  ids.reserve(json.as_array().size());
  for (const Json& id : json.as_array()) {
    if (!id.is_int() || id.as_int() < 0 || id.as_int() > INT32_MAX)
      return fail(ErrorCode::kBadInput,
                  format("{}: element {} is {}, not a token id", where, ids.size(), to_json_text(id)));
    ids.push_back(static_cast<TokenId>(id.as_int()));
  }
  return ids;
}

}  // namespace cpuinfer::tools
