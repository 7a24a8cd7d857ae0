#include "bench/model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "base/format.h"
#include "bench/timing.h"
#include "engine/load/synthetic.h"
#include "kernels/kernels.h"

namespace cpuinfer::bench {
namespace {

using run::Engine;
using run::EngineOptions;
using run::Sequence;

constexpr int64_t kWarmUpSteps = 8;
// Between two looks at `cancel`: some 0.1 s of a large model's cache.
constexpr int64_t kFabricatedTokens = 64 * kernels::kLeafTokens;

Result<void> check(const std::atomic<bool>* cancel) {
  if (cancel != nullptr && cancel->load(std::memory_order_relaxed))
    return fail(ErrorCode::kInterrupted, "the benchmark was interrupted");
  return {};
}

TokenId token_at(int sequence, int64_t position, int vocab) {
  const uint64_t bits = load::random_bits(static_cast<uint64_t>(sequence), static_cast<uint64_t>(position));
  return static_cast<TokenId>(bits % static_cast<uint64_t>(vocab));
}

// The engine that runs these cases: of each thing the most that one of them needs, not more.
EngineOptions options_for(const ModelBenchOptions& options, std::span<const ModelCase> cases) {
  EngineOptions engine = options.engine;
  engine.context_tokens = 1;
  engine.kv_tokens = 1;
  int64_t prompt = 1;  // decode takes no chunks: contexts are made up
  for (const ModelCase& test : cases) {
    engine.context_tokens = std::max(engine.context_tokens, test.length());
    engine.kv_tokens = std::max(engine.kv_tokens, test.kv_tokens());
    engine.sequences = std::max(engine.sequences, test.batch);
    engine.experts = std::max(engine.experts, test.experts);
    prompt = std::max(prompt, test.prompt);
  }
  engine.chunk_tokens = static_cast<int>(std::min<int64_t>(engine.chunk_tokens, prompt));
  return engine;
}

std::string shortages_of(const Engine& engine) { return fmt::format("{}", fmt::join(engine.plan().shortages, "; ")); }

// Those that are not refused.
std::vector<ModelCase> wanted_of(std::span<const PlannedCase> planned) {
  std::vector<ModelCase> cases;
  for (const PlannedCase& entry : planned)
    if (!entry.refusal) cases.push_back(entry.test);
  return cases;
}

// An engine for as many of the cases as fit together; refuses the others. Errors: kDoesNotFit if that is none.
Result<std::unique_ptr<Engine>> fit_cases(const ModelBenchOptions& options, std::vector<PlannedCase>& planned) {
  TRY_ASSIGN(std::unique_ptr<Engine> engine, Engine::prepare(options_for(options, wanted_of(planned))));
  if (engine->plan().fits()) return engine;
  // Each by itself: a case that does not fit is refused with its own numbers, whatever else is asked for.
  std::vector<int64_t> bytes;
  std::unique_ptr<Engine> smallest;
  for (PlannedCase& entry : planned) {
    TRY_ASSIGN(std::unique_ptr<Engine> alone, Engine::prepare(options_for(options, {&entry.test, 1})));
    bytes.push_back(alone->plan().total());
    if (!alone->plan().fits()) entry.refusal = shortages_of(*alone);
    if (smallest == nullptr || alone->plan().total() < smallest->plan().total()) smallest = std::move(alone);
  }
  // Then together, without the largest until the rest fits.
  std::vector<ModelCase> wanted = wanted_of(planned);
  if (wanted.empty()) engine = std::move(smallest);
  for (; !wanted.empty(); wanted = wanted_of(planned)) {
    TRY_ASSIGN(engine, Engine::prepare(options_for(options, wanted)));
    if (engine->plan().fits() || wanted.size() == 1) break;
    size_t largest = planned.size();
    for (size_t i = 0; i < planned.size(); ++i)
      if (!planned[i].refusal && (largest == planned.size() || bytes[i] > bytes[largest])) largest = i;
    planned[largest].refusal =
        format("by itself it would fit, beside the other cases it does not ({}): measure it in a run of its own",
               shortages_of(*engine));
  }
  TRY(engine->plan().check("no case fits: take fewer --layers, a smaller --depth or --batch, or more memory"));
  return engine;
}

}  // namespace

Result<ModelBench> ModelBench::prepare(const ModelBenchOptions& options) {
  // Once for what config.json says.
  EngineOptions first = options.engine;
  first.context_tokens = 1;
  if (!options.cases.experts.empty()) first.experts = *std::ranges::max_element(options.cases.experts);
  TRY_ASSIGN(std::unique_ptr<Engine> engine, Engine::prepare(first));
  const model::ModelConfig config = engine->config();
  const std::vector<ModelCase> cases = list_cases(options.cases, config.experts_per_token);
  if (cases.empty()) return fail(ErrorCode::kUsage, "there is nothing to measure: give --tg or --pp");

  ModelBenchOptions chosen = options;
  const int64_t longest = std::ranges::max(cases, {}, &ModelCase::length).length();
  if (longest > config.max_positions && !options.engine.rope) {
    model::RopeConfig& rope = chosen.engine.rope.emplace();
    rope.type = model::RopeType::kLinear;
    rope.factor = static_cast<double>(ceil_div(longest, config.max_positions));
  }

  std::vector<PlannedCase> planned;
  for (const ModelCase& test : cases) planned.push_back({test, std::nullopt});
  TRY_ASSIGN(engine, fit_cases(chosen, planned));
  return ModelBench(std::move(engine), std::move(planned), options);
}

double ModelBench::estimated_cost(const ModelCase& test) const {
  // In bytes: of weights and cache that decode reads; for prefill so many as are read while its arithmetic is done.
  constexpr double kFlopsPerByte = 15;
  const model::ModelConfig& c = engine_->config();
  const double weights = static_cast<double>(engine_->decode_weight_bytes());
  const double context = static_cast<double>(test.depth) * static_cast<double>(engine_->plan().kv_bytes_per_token);
  const double fabrication = test.batch * context;
  if (test.decode())
    return fabrication +
           repeats_ * static_cast<double>(test.decoded) * (std::sqrt(test.batch) * weights + test.batch * context);
  const double flops_per_token = weights + context * c.heads / c.kv_heads;  // a bf16 weight is a product and a sum
  return fabrication + repeats_ * static_cast<double>(test.prompt) * flops_per_token / kFlopsPerByte;
}

Result<void> ModelBench::repeat(const ModelCase& test, std::span<Sequence> sequences, int64_t tokens,
                                const std::atomic<bool>* cancel) {
  const int vocab = engine_->config().vocab;
  if (!test.decode()) {
    std::vector<TokenId> prompt;
    for (int64_t i = 0; i < tokens; ++i) prompt.push_back(token_at(0, test.depth + i, vocab));
    run::AppendOptions append;
    append.cancel = cancel;
    return engine_->append(sequences[0], prompt, append);
  }
  std::vector<TokenId> next(sequences.size());
  std::vector<run::StepRequest> requests(sequences.size());
  for (int64_t step = 0; step < tokens; ++step) {
    TRY(check(cancel));
    for (size_t s = 0; s < sequences.size(); ++s) {
      next[s] = token_at(static_cast<int>(s), test.depth + step, vocab);
      requests[s] = {&sequences[s], {&next[s], 1}, run::LogitRows::kLast};
    }
    TRY(engine_->step(requests));
  }
  return {};
}

Result<CaseResult> ModelBench::run(const ModelCase& test, LimitSampler& sampler, const std::atomic<bool>* cancel,
                                   const Progress& progress) {
  if (test.experts > 0) engine_->set_experts(test.experts);
  std::vector<Sequence> sequences;
  for (int i = 0; i < test.batch; ++i) {
    TRY_ASSIGN(Sequence sequence, engine_->start_sequence(test.length()));
    for (int64_t length = 0; length < test.depth;) {
      TRY(check(cancel));
      length = std::min(length + kFabricatedTokens, test.depth);
      TRY(engine_->fabricate_context(sequence, length));
    }
    sequences.push_back(std::move(sequence));
  }
  const auto rewind = [&] {
    for (Sequence& sequence : sequences) sequence.truncate(test.depth);
  };

  const int64_t count = test.decode() ? test.decoded : test.prompt;
  const int64_t warm_up = std::min(count, test.decode() ? kWarmUpSteps : int64_t{engine_->limits().rows});
  TRY(repeat(test, sequences, warm_up, cancel));
  rewind();
  engine_->reset_profile();
  sampler.forget();
  const auto timed_repeat = [&]() -> Result<double> {
    const Clock::time_point started = Clock::now();
    TRY(repeat(test, sequences, count, cancel));
    const double seconds = seconds_since(started);
    rewind();
    return seconds;
  };
  const int all = counting_cost_ ? 3 * repeats_ : repeats_;
  CaseResult result;
  for (int i = 0; i < repeats_; ++i) {
    sampler.sample();
    TRY_ASSIGN(const double seconds, timed_repeat());
    result.seconds.push_back(seconds);
    if (progress) progress(i + 1, all);
  }
  sampler.sample();

  result.profile = engine_->profile(run::StepKind::kDecode);
  result.profile += engine_->profile(run::StepKind::kPrefill);
  const double tokens = static_cast<double>(test.tokens());
  const auto [fastest, slowest] = std::ranges::minmax(result.seconds);
  result.tokens_per_second = tokens / median(result.seconds);
  result.spread = (tokens / fastest - tokens / slowest) / 2;
  double bytes = 0, flops = 0;
  for (const model::PhaseCounters& phase : result.profile.phases) {
    bytes += static_cast<double>(phase.bytes);
    flops += static_cast<double>(phase.flops);
  }
  result.bytes_per_token = bytes / static_cast<double>(result.profile.tokens);
  result.flops_per_token = flops / static_cast<double>(result.profile.tokens);
  result.limits = sampler.limits();
  result.bound = bound_of(result.bytes_per_token, result.flops_per_token, result.limits);

  if (counting_cost_) {
    std::vector<double> ratios;
    for (int i = 0; i < repeats_; ++i) {
      double seconds[2] = {};  // without, with
      for (int turn = 0; turn < 2; ++turn) {
        const bool counting = (i + turn) % 2 == 0;  // neither is always first
        engine_->set_counting(counting);
        auto measured = timed_repeat();
        engine_->set_counting(true);
        TRY_ASSIGN(seconds[counting], std::move(measured));
      }
      ratios.push_back(seconds[1] / seconds[0]);
      if (progress) progress(repeats_ + 2 * (i + 1), all);
    }
    std::ranges::sort(ratios);
    result.counting = {median(ratios), ratios[ratios.size() / 4], ratios[ratios.size() - 1 - ratios.size() / 4]};
  }
  return result;
}

}  // namespace cpuinfer::bench
