#include "bench/limits.h"

#include <algorithm>
#include <functional>
#include <string_view>

#include "base/check.h"
#include "base/format.h"
#include "bench/timing.h"

namespace cpuinfer::bench {
namespace {

// Less than this for a worker is read too fast to be timed.
constexpr int64_t kLeastBytes = 1_MiB;
constexpr size_t kFinalists = 4;

// The weights, cut so that each worker reads a share of what lies on its node.
ReadMemory weight_memory(run::Engine& engine) {
  ReadMemory memory;
  memory.pages = "weights";
  memory.workers.resize(static_cast<size_t>(engine.workers()));
  engine.team().run([&](numa::Worker& worker) {
    const numa::NodeBuffer& buffer = engine.weights()[worker.node];
    constexpr int64_t kPiece = 4096;
    const numa::Range share = numa::split(buffer.size() / kPiece, worker.count_in_node, worker.rank_in_node);
    memory.workers[worker.rank] = {{buffer.data() + share.begin * kPiece, share.count() * kPiece}};
  });
  return memory;
}

// The profile dp is a chain of fused multiply-adds, which vdpbf16ps computes too; the profile amx is what tiles
// compute, or fused multiply-adds in their order.
bool may_use(const kernels::PeakProbe& probe, kernels::Profile profile) {
  const std::string_view name = probe.name;
  if (name.starts_with("fp32 FMA")) return true;
  return name.starts_with(profile == kernels::Profile::kDp ? "vdpbf16ps" : "amx");
}

}  // namespace

Bound bound_of(double bytes, double flops, const MachineLimits& limits) {
  const double reading = limits.read_bytes_per_second > 0 ? bytes / limits.read_bytes_per_second : 0;
  const double computing = limits.flops_per_second > 0 ? flops / limits.flops_per_second : 0;
  return {std::max(reading, computing), computing > reading};
}

Result<LimitSampler> LimitSampler::create(run::Engine& engine, SampleLength length, const std::atomic<bool>* cancel) {
  ENSURE(!engine.weights().empty(), "limits are measured on loaded weights");
  const bool quick = length == SampleLength::kQuick;
  // The reference kernels are compiled for AVX2 too.
  const kernels::Isa isa = kernels::covers(engine.isa(), kernels::Isa::kAvx2) ? engine.isa() : kernels::Isa::kAvx2;
  const Watch watch = {.cancel = cancel, .progress = {}};
  LimitSampler sampler(engine, length);
  sampler.memory_ = std::make_unique<ReadMemory>(weight_memory(engine));
  const auto too_small = [](const std::vector<ReadSpan>& pieces) { return pieces[0].bytes < kLeastBytes; };
  if (std::ranges::any_of(sampler.memory_->workers, too_small)) {
    TRY_ASSIGN(sampler.buffers_, make_read_buffers(engine.team(), engine.topology(), 2 * kLeastBytes * engine.workers(),
                                                   numa::Pages::kHuge));
    *sampler.memory_ = sampler.buffers_.memory;
  }
  TRY_ASSIGN(const ReadSweep sweep,
             sweep_read(engine.team(), {sampler.memory_.get(), 1}, isa, quick ? quick_effort() : SweepEffort{}, watch));
  std::vector<ReadEntry> entries = sweep.entries;
  std::ranges::sort(entries, std::greater{}, [](const ReadEntry& entry) { return entry.rate.all; });
  entries.resize(std::min(entries.size(), quick ? size_t{1} : kFinalists));
  for (const ReadEntry& entry : entries) sampler.finalists_.push_back({entry.config});
  sampler.reader_ = std::make_unique<ReadSampler>(engine.team(), *sampler.memory_);

  TRY_ASSIGN(const std::vector<PeakFigure> figures, measure_peaks(engine.team(), isa, quick ? 0.005 : 0.05, watch));
  double best = 0, best_fma = 0;
  for (const PeakFigure& figure : figures) {
    if (!may_use(*figure.probe, engine.kernels().profile)) continue;
    if (figure.all > best) {
      best = figure.all;
      sampler.peak_probe_ = figure.probe;
    }
    if (std::string_view(figure.probe->name).starts_with("fp32 FMA") && figure.all > best_fma) {
      best_fma = figure.all;
      sampler.fma_probe_ = figure.probe;
    }
  }
  ENSURE(sampler.fma_probe_ != nullptr, "there is a probe of fused multiply-adds for every CPU that cpuinfer runs on");
  return sampler;
}

void LimitSampler::sample() {
  const bool quick = length_ == SampleLength::kQuick;
  numa::Team& team = engine_->team();
  Finalist* fastest = nullptr;
  double best = 0;
  for (Finalist& finalist : finalists_) {
    const double rate = reader_->sample(finalist.config, quick ? 0.005 : 0.03).all;
    if (fastest != nullptr && rate <= best) continue;
    fastest = &finalist;
    best = rate;
  }
  ++fastest->wins;
  reads_.push_back(best);
  fmas_.push_back(sample_peak(team, *fma_probe_, true, quick ? 0.002 : 0.02));
  peaks_.push_back(peak_probe_ == fma_probe_ ? fmas_.back()
                                             : sample_peak(team, *peak_probe_, true, quick ? 0.002 : 0.02));
}

void LimitSampler::forget() {
  reads_.clear();
  peaks_.clear();
  fmas_.clear();
}

MachineLimits LimitSampler::limits() const {
  return {.read_bytes_per_second = median(reads_),
          .flops_per_second = std::max(median(peaks_), median(fmas_)),  // disturbances may turn them round
          .fma_flops_per_second = median(fmas_)};
}

std::string LimitSampler::read_name() const {
  const ReadConfig& read = std::ranges::max_element(finalists_, {}, &Finalist::wins)->config;
  const kernels::ReadPattern& pattern = read.pattern;
  const std::string ahead =
      pattern.prefetch_bytes == 0 ? "no prefetch" : format_bytes(pattern.prefetch_bytes) + " ahead";
  return format("{} stream{} of {}, {}, {}, from {}", pattern.streams, pattern.streams == 1 ? "" : "s",
                format_bytes(pattern.stream_bytes), ahead, read.probe->name,
                memory_->pages == "weights" ? "the weights" : "memory of its own");
}

}  // namespace cpuinfer::bench
