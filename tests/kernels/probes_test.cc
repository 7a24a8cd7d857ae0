// The loops that measure: they read every byte and compute what they say, or their figures mean nothing.
#include "kernels/probes.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "tests/kernels/kernel_data.h"

using namespace cpuinfer;
using namespace cpuinfer::kernels;

TEST_CASE("read probes: every probe and pattern reads every byte once") {
  const int64_t bytes = 256_KiB;
  GuardedBuffer<uint64_t> data(bytes / 8, 0);
  Random random(7);
  for (uint64_t& word : data) word = static_cast<uint64_t>(random.integer(0, INT32_MAX)) << 32 | 0x9e3779b9u;
  uint64_t expected = 0;
  for (const uint64_t word : data) expected ^= word;
  const auto* begin = reinterpret_cast<const std::byte*>(data.data());
  for (const ReadProbe& probe : read_probes()) {
    if (!runs_here(format("row {}", probe.name), probe.needs)) continue;
    for (const int streams : {1, 2, 4, 8})
      for (const int64_t stream_bytes : {int64_t{512}, 4_KiB, bytes / streams})
        for (const int64_t ahead : {int64_t{0}, int64_t{512}, 1_KiB, 4_KiB}) {
          if (ahead > stream_bytes) continue;
          CAPTURE(probe.name);
          CAPTURE(streams);
          CAPTURE(stream_bytes);
          CAPTURE(ahead);
          const ReadPattern pattern{streams, stream_bytes, ahead};
          CHECK(probe.run(begin, bytes, pattern) == expected);
          // One bit anywhere shows: no word is left out, none is read twice.
          for (const int64_t word : {int64_t{0}, bytes / 16 + 3, bytes / 8 - 1}) {
            data[word] ^= uint64_t{1} << (word % 64);
            CHECK(probe.run(begin, bytes, pattern) == (expected ^ uint64_t{1} << (word % 64)));
            data[word] ^= uint64_t{1} << (word % 64);
          }
          CHECK(probe.run(begin, streams * stream_bytes, pattern) ==
                probe.run(begin, streams * stream_bytes, {1, streams * stream_bytes, 0}));
        }
  }
}

TEST_CASE("peak probes: finite sums that depend on the iterations' work") {
  const FlushDenormals mode;
  for (const PeakProbe& probe : peak_probes()) {
    if (!runs_here(format("row {}", probe.name), probe.needs)) continue;
    CAPTURE(probe.name);
    CHECK(probe.flops_per_iteration > 0);
    for (const int64_t iterations : {1, 2, 1000}) {
      const float sum = probe.run(iterations);
      CHECK(std::isfinite(sum));
      CHECK(std::fabs(sum) >= 1.0f);
    }
  }
}

TEST_CASE("peak probes: the sums are those of the recurrences") {
  const FlushDenormals mode;
  for (const PeakProbe& probe : peak_probes()) {
    if (!runs_here(format("row {}", probe.name), probe.needs)) continue;
    CAPTURE(probe.name);
    const bool fma = std::string_view(probe.name).starts_with("fp32 FMA");
    if (!fma) {
      // Pairs cancel: the sum is what it was.
      CHECK(probe.run(1) == probe.run(1000));
      continue;
    }
    // After n steps x is 2 + (x0 - 2) / 2^n; after 1000 all are 2.
    const auto sums = static_cast<float>(probe.flops_per_iteration / 2);
    CHECK(probe.run(1000) == 2 * sums);
    CHECK(probe.run(1) != probe.run(2));
    CHECK(std::fabs(probe.run(3) - 2 * sums) < std::fabs(probe.run(1) - 2 * sums));
  }
}
