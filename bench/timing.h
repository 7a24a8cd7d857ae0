// Clocks and medians of measurements.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

namespace cpuinfer::bench {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// How long one call takes.
template <typename F>
double seconds_of(F&& work) {
  const Clock::time_point start = Clock::now();
  work();
  return seconds_since(start);
}

/// The middle of the values, or the mean of the two in the middle. REQUIRES: not empty.
inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return values.size() % 2 == 1 ? *middle : (*std::max_element(values.begin(), middle) + *middle) / 2;
}

/// The median of what `sample` (seconds of one unit) returns, called for about `budget_seconds`, at least three times
/// after one that does not count.
template <typename F>
double median_seconds(double budget_seconds, F&& sample) {
  sample();
  std::vector<double> samples;
  const Clock::time_point start = Clock::now();
  do {
    samples.push_back(sample());
  } while (samples.size() < 3 || seconds_since(start) < budget_seconds);
  return median(std::move(samples));
}

}  // namespace cpuinfer::bench
