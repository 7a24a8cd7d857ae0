// The speed of a model on this machine: cases of decode and prefill at depths, beside what bounds them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "bench/limits.h"
#include "bench/model_cases.h"
#include "engine/run/engine.h"

namespace cpuinfer::bench {

struct ModelBenchOptions {
  run::EngineOptions engine;  ///< context, sequences, KV cache and experts are set by the cases
  CaseLists cases;
  int repeats = 5;
  bool counting_cost = false;  ///< measure it, which takes twice the repeats once more
};

/// Seconds of a repeat whose phases were counted / of one whose phases were not, in pairs.
struct CountingCost {
  double median = 1, low = 1, high = 1;  ///< low to high: the middle half of the pairs
};

/// A case, and why it cannot run if memory has no room for it.
struct PlannedCase {
  ModelCase test;
  std::optional<std::string> refusal;  ///< what it needs and what there is, by itself or beside the other cases
};

/// What a case took. Rates are of all sequences together.
struct CaseResult {
  std::vector<double> seconds;   ///< of each repeat
  run::StepProfile profile;      ///< of all repeats
  double tokens_per_second = 0;  ///< median of the repeats
  double spread = 0;             ///< half of the distance between the slowest and the fastest repeat, in tokens/s
  double bytes_per_token = 0;    ///< weights, keys and values read
  double flops_per_token = 0;
  MachineLimits limits;                  ///< medians of what was sampled between the repeats of this case
  Bound bound;                           ///< of one token
  std::optional<CountingCost> counting;  ///< of the profile, if it was asked for
  /// Share of the bound that was reached: 1 is all of it. 0 if there is no bound.
  double share() const { return bound.seconds * tokens_per_second; }
  double flops_per_second() const { return flops_per_token * tokens_per_second; }
};

/// Owns an engine that is planned for all cases that fit, together: of each thing the most that one of them needs. Used
/// by one thread.
class ModelBench {
 public:
  /// Reads no weights. A depth beyond the positions of the model is reached by linear rope scaling, which changes no
  /// speed. Errors: of Engine::prepare; kDoesNotFit with the table of the smallest case if none fits.
  static Result<ModelBench> prepare(const ModelBenchOptions& options);

  run::Engine& engine() { return *engine_; }
  /// In the order of CaseLists.
  std::span<const PlannedCase> cases() const { return cases_; }

  /// A rough measure of the time that a case takes, to tell how much is left.
  double estimated_cost(const ModelCase& test) const;

  /// Called between repeats with repeats done of the case.
  using Progress = std::function<void(int done, int total)>;

  /// Runs one case: fabricates its context, computes a few steps that do not count, then the repeats with
  /// samples of the machine's limits before each, then, if asked for, the pairs of CountingCost. Token ids are
  /// pseudo-random, different for every sequence and step, so that experts vary as they do in texts; they are the same
  /// in every repeat. REQUIRES: engine().load() succeeded; a case without refusal. Errors: kInterrupted (cancel), of
  /// Engine::step.
  Result<CaseResult> run(const ModelCase& test, LimitSampler& sampler, const std::atomic<bool>* cancel,
                         const Progress& progress = {});

 private:
  ModelBench(std::unique_ptr<run::Engine> engine, std::vector<PlannedCase> cases, const ModelBenchOptions& options)
      : engine_(std::move(engine)),
        cases_(std::move(cases)),
        repeats_(options.repeats),
        counting_cost_(options.counting_cost) {}
  Result<void> repeat(const ModelCase& test, std::span<run::Sequence> sequences, int64_t tokens,
                      const std::atomic<bool>* cancel);

  std::unique_ptr<run::Engine> engine_;
  std::vector<PlannedCase> cases_;
  int repeats_;
  bool counting_cost_;
};

}  // namespace cpuinfer::bench
