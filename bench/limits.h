// What bounds a model on this machine, measured with the engine's own workers on its own weights, between its steps.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "bench/peaks.h"
#include "bench/read.h"
#include "engine/run/engine.h"

namespace cpuinfer::bench {

/// The most that all workers together can do.
struct MachineLimits {
  double read_bytes_per_second = 0;
  double flops_per_second = 0;      ///< of the best instruction that the numeric profile may use
  double fma_flops_per_second = 0;  ///< of fused multiply-add in fp32
};

/// The least time that some bytes and some arithmetic can take.
struct Bound {
  double seconds = 0;       ///< the larger of the two; 0: nothing is known
  bool arithmetic = false;  ///< which of the two it is
};
Bound bound_of(double bytes, double flops, const MachineLimits& limits);

/// How long to measure.
enum class SampleLength {
  kNormal,
  kQuick,  ///< short: shows that it works, not how fast
};

/// Measures the limits again and again, so that a figure and what it is compared with come from the same moments: on a
/// shared machine both change from minute to minute. Used by the thread of the engine; not after its engine.
class LimitSampler {
 public:
  /// Looks for the fastest way to read the weights of the engine (of a model that is too small for that: memory of its
  /// own), and for the best instruction that its numeric profile may use. Takes some 3 s, or 0.2 s when quick.
  /// REQUIRES: the engine is loaded. Errors: kInterrupted, kDoesNotFit.
  static Result<LimitSampler> create(run::Engine& engine, SampleLength length,
                                     const std::atomic<bool>* cancel = nullptr);

  /// Adds one measurement of each limit to the series: about 0.2 s.
  void sample();
  /// Begins a new series.
  void forget();
  /// Medians of the series. REQUIRES: at least one sample.
  MachineLimits limits() const;

  /// "8 streams of 64 KiB, 2 KiB ahead, avx512, from weights": the way to read that was the fastest most often.
  std::string read_name() const;
  const char* peak_name() const { return peak_probe_->name; }
  int workers() const { return engine_->workers(); }

 private:
  /// One of the fastest ways to read: which of them is the fastest changes with what else the memory is doing, so each
  /// sample tries them all and takes the best.
  struct Finalist {
    ReadConfig config;
    int wins = 0;
  };

  LimitSampler(run::Engine& engine, SampleLength length) : engine_(&engine), length_(length) {}

  run::Engine* engine_;
  SampleLength length_;
  ReadBuffers buffers_;                 // for models that are too small
  std::unique_ptr<ReadMemory> memory_;  // at one place: the sampler holds on to it
  std::unique_ptr<ReadSampler> reader_;
  std::vector<Finalist> finalists_;
  const kernels::PeakProbe* peak_probe_ = nullptr;
  const kernels::PeakProbe* fma_probe_ = nullptr;
  std::vector<double> reads_, peaks_, fmas_;  // the series
};

}  // namespace cpuinfer::bench
