// What the phases of a step took, beside what bounds them: for --profile.
#pragma once

#include <string>

#include "base/json.h"
#include "bench/limits.h"
#include "engine/run/engine.h"
#include "tools/progress.h"

namespace cpuinfer::tools {

/// A Markdown table with a row for each phase that did anything, one for what lies between the phases (the start of a
/// step, and its end until the last worker is done), and one for all: ms per step, share of the time, MB read per step,
/// GB/s, GFLOP/s, percent of the phase's bound (the larger of bytes / bandwidth and flops / peak, over its time), and
/// percent of its time spent waiting at barriers.
std::string phase_table(const run::StepProfile& profile, const bench::MachineLimits& limits);

/// The same numbers, in seconds, bytes and flops of all steps.
Json phases_json(const run::StepProfile& profile, const bench::MachineLimits& limits);

/// "reads 26.1 GB/s (2 streams, ...), computes 397 GFLOP/s (...)": `limits` as measured by the sampler.
std::string describe_limits(const bench::LimitSampler& sampler, const bench::MachineLimits& limits);

/// For the end of a session with --profile: measures the machine's limits and prints the tables of decode and prefill
/// on stderr. REQUIRES: the engine is loaded. Errors: kInterrupted (cancel_flag()), kDoesNotFit.
Result<void> print_profile(run::Engine& engine, Console& console);

}  // namespace cpuinfer::tools
