#include "bench/store.h"

#include <chrono>
#include <cstring>

#include "base/format.h"
#include "engine/load/synthetic.h"

namespace cpuinfer::bench {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Token ids without a pattern, others for each prefix.
std::vector<TokenId> prefix_tokens(int64_t count, int vocab) {
  std::vector<TokenId> tokens(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    tokens[i] = static_cast<TokenId>(load::random_bits(static_cast<uint64_t>(count), static_cast<uint64_t>(i)) %
                                     static_cast<uint64_t>(vocab));
  return tokens;
}

// Seconds until the logits after `tokens` are there, begun with what there is of them.
Result<double> time_first_token(run::Engine& engine, run::Sequence& sequence, std::span<const TokenId> tokens,
                                const Watch& watch, std::vector<float>& logits, run::ReusedTokens& reused) {
  const Clock::time_point start = Clock::now();
  run::AppendOptions options;
  options.cancel = watch.cancel;
  TRY_ASSIGN(reused, engine.reuse(sequence, tokens.first(tokens.size() - 1), options));
  options.logits = [&](int64_t, std::span<const std::span<const float>> rows) {
    logits.assign(rows.back().begin(), rows.back().end());
  };
  options.progress = [&](int64_t done, int64_t total) {
    if (watch.progress) watch.progress(static_cast<double>(done) / static_cast<double>(total));
  };
  TRY(engine.append(sequence, tokens.subspan(static_cast<size_t>(reused.total())), options));
  return seconds_since(start);
}

Result<StoreCase> measure_prefix(run::Engine& engine, int64_t prefix, const Watch& watch) {
  StoreCase result{.prefix_tokens = prefix};
  // The page that the last token is in stays unfinished: a prefix of whole pages, and a token.
  const std::vector<TokenId> tokens = prefix_tokens(prefix + 1, engine.config().vocab);
  const storage::PageStore& store = engine.kv_store()->pages();
  std::vector<float> computed, kept, read;
  run::ReusedTokens reused;
  {
    TRY_ASSIGN(run::Sequence sequence, engine.start_sequence(prefix + 1));
    TRY_ASSIGN(result.cold_seconds, time_first_token(engine, sequence, tokens, watch, computed, reused));
    const Clock::time_point flush = Clock::now();
    engine.save(sequence);
    result.flush_seconds = seconds_since(flush);
    TRY_ASSIGN(result.memory_seconds,
               time_first_token(engine, sequence, tokens, {.cancel = watch.cancel}, kept, reused));
  }
  TRY_ASSIGN(run::Sequence sequence, engine.start_sequence(prefix + 1));
  const storage::PageStoreStatistics before = store.statistics();
  TRY_ASSIGN(result.stored_seconds, time_first_token(engine, sequence, tokens, {.cancel = watch.cancel}, read, reused));
  const storage::PageStoreStatistics after = store.statistics();
  if (reused.store < prefix / kernels::kLeafTokens * kernels::kLeafTokens)
    return fail(ErrorCode::kRuntime,
                format("the store kept {} of {} tokens: it has no room, or its disk fails", reused.store, prefix));
  result.bytes = after.read_bytes - before.read_bytes;
  result.read_bandwidth = static_cast<double>(result.bytes) / (after.read_seconds - before.read_seconds);
  const auto equal = [&](const std::vector<float>& other) {
    return other.size() == computed.size() &&
           std::memcmp(other.data(), computed.data(), computed.size() * sizeof(float)) == 0;
  };
  result.same_bits = equal(kept) && equal(read);
  return result;
}

}  // namespace

Result<StoreFigures> measure_store(run::Engine& engine, const StoreBenchOptions& options, const Watch& watch) {
  const storage::PageStore& store = engine.kv_store()->pages();
  StoreFigures figures{.model = engine.model_name(), .directory = store.directory().string(), .disk = {}, .cases = {}};
  TRY_ASSIGN(figures.disk, measure_disk(engine.topology(),
                                        {.model = {}, .directory = store.directory(), .seconds = options.disk_seconds},
                                        {.cancel = watch.cancel}));
  for (const int64_t prefix : options.prefixes) {
    TRY_ASSIGN(StoreCase measured, measure_prefix(engine, prefix, watch));
    figures.cases.push_back(measured);
  }
  const storage::PageStoreStatistics statistics = store.statistics();
  if (statistics.write_seconds > 0)
    figures.write_bandwidth = static_cast<double>(statistics.written_bytes) / statistics.write_seconds;
  return figures;
}

std::string store_text(const StoreFigures& figures) {
  const double disk = figures.disk.winner().bytes_per_second;
  std::string text = format("{}, store in {}\ndisk, sequential reading {:.2f} GB/s ({})\n\n", figures.model,
                            figures.directory, disk / 1e9, figures.disk.what);
  text += "seconds to the first token after a prefix\n";
  text += format("{:>9} {:>10} {:>10} {:>10} {:>9} {:>8} {:>9} {:>6}  {}\n", "prefix", "computed", "from disk",
                 "in memory", "x faster", "GB", "read GB/s", "% disk", "bits");
  for (const StoreCase& c : figures.cases) {
    text += format("{:>9} {:>10.3f} {:>10.3f} {:>10.3f} {:>9.1f} {:>8.3f} {:>9.2f} {:>6.0f}  {}\n", c.prefix_tokens,
                   c.cold_seconds, c.stored_seconds, c.memory_seconds, c.cold_seconds / c.stored_seconds,
                   static_cast<double>(c.bytes) / 1e9, c.read_bandwidth / 1e9, 100 * c.read_bandwidth / disk,
                   c.same_bits ? "same" : "DIFFERENT");
  }
  text += format("\nwritten at {:.2f} GB/s while pages were on their way", figures.write_bandwidth / 1e9);
  double flush = 0;
  for (const StoreCase& c : figures.cases) flush = std::max(flush, c.flush_seconds);
  return text + format("; on the disk at most {:.3f} s after the first token\n", flush);
}

Json store_json(const StoreFigures& figures) {
  Json json;
  json.set("model", figures.model);
  json.set("directory", figures.directory);
  json.set("disk_bytes_per_second", figures.disk.winner().bytes_per_second);
  json.set("write_bytes_per_second", figures.write_bandwidth);
  Json cases{Json::Array{}};
  for (const StoreCase& c : figures.cases) {
    Json entry;
    entry.set("prefix_tokens", c.prefix_tokens);
    entry.set("cold_seconds", c.cold_seconds);
    entry.set("flush_seconds", c.flush_seconds);
    entry.set("stored_seconds", c.stored_seconds);
    entry.set("memory_seconds", c.memory_seconds);
    entry.set("bytes", c.bytes);
    entry.set("read_bytes_per_second", c.read_bandwidth);
    entry.set("same_bits", c.same_bits);
    cases.push_back(std::move(entry));
  }
  json.set("cases", std::move(cases));
  return json;
}

}  // namespace cpuinfer::bench
