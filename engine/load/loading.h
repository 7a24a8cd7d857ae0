// What the workers of a load share: progress, and whether to give up.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "base/result.h"
#include "engine/load/loader.h"
#include "numa/team.h"
#include "numa/topology.h"

namespace cpuinfer::load {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// A team to load with instead of one of fewer than kLeastLoaders workers; nullptr for a larger one, and where the
/// system gives no more threads: those that there are load more slowly.
std::unique_ptr<numa::Team> more_loaders(const numa::Team& team, const numa::Topology& topology);

/// Views the options. Thread-safe but for the constructor.
class Loading {
 public:
  Loading(const LoadOptions& options, int64_t total_bytes) : options_(options), total_bytes_(total_bytes) {}

  /// Any worker, between units. True: give up.
  bool stopped() {
    if (options_.cancel != nullptr && options_.cancel->load(std::memory_order_relaxed))
      stop({ErrorCode::kInterrupted, "loading was interrupted"});
    return stopped_.load(std::memory_order_relaxed);
  }
  /// The first error counts.
  void stop(Error error) {
    const std::scoped_lock lock(mutex_);
    if (!error_) error_ = std::move(error);
    stopped_ = true;
  }
  /// When no worker runs.
  Result<void> result() const {
    if (error_) return std::unexpected(*error_);
    return {};
  }

  void add_done(int64_t bytes) { done_bytes_.fetch_add(bytes, std::memory_order_relaxed); }
  int64_t done_bytes() const { return done_bytes_.load(std::memory_order_relaxed); }
  /// One worker, between blocks. (Every node reads what it has a copy of, which may be more than all.)
  void report() const {
    if (options_.progress) options_.progress(std::min(done_bytes(), total_bytes_), total_bytes_);
  }

 private:
  const LoadOptions& options_;
  int64_t total_bytes_;
  std::atomic<bool> stopped_ = false;
  std::atomic<int64_t> done_bytes_ = 0;
  std::mutex mutex_;
  std::optional<Error> error_;
};

}  // namespace cpuinfer::load
