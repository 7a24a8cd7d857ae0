#include "bench/read.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/types.h"
#include "bench/timing.h"

namespace cpuinfer::bench {
namespace {

// What a worker reads between two looks at the clock: some 50 us.
constexpr int64_t kSomeBytes = 1_MiB;
constexpr int64_t kUnitBytes = 64_KiB;

/// The rates of an entry, sample by sample.
struct Samples {
  std::vector<double> all;
  std::vector<std::vector<double>> nodes;

  void add(const ReadRate& rate) {
    all.push_back(rate.all);
    nodes.resize(rate.nodes.size());
    for (size_t n = 0; n < rate.nodes.size(); ++n) nodes[n].push_back(rate.nodes[n]);
  }
  ReadRate medians() const {
    ReadRate rate{median(all), {}};
    for (const std::vector<double>& node : nodes) rate.nodes.push_back(median(node));
    return rate;
  }
};

std::vector<kernels::ReadPattern> patterns(bool quick, int64_t largest) {
  std::vector<kernels::ReadPattern> list;
  const std::vector<int64_t> distances =
      quick ? std::vector<int64_t>{0, 2_KiB} : std::vector<int64_t>{0, 512, 1_KiB, 2_KiB, 4_KiB, 8_KiB};
  for (const int64_t stream_bytes : {kUnitBytes, 1_MiB})
    for (const int streams : {1, 2, 4, 8})
      for (const int64_t distance : distances)
        if (streams * stream_bytes <= largest) list.push_back({streams, stream_bytes, distance});
  return list;
}

/// The piece that every worker of the memory has at least.
int64_t smallest_largest_piece(const ReadMemory& memory) {
  int64_t bytes = INT64_MAX;
  for (const std::vector<ReadSpan>& pieces : memory.workers) {
    int64_t largest = 0;
    for (const ReadSpan& piece : pieces) largest = std::max(largest, piece.bytes);
    bytes = std::min(bytes, largest);
  }
  return bytes;
}

}  // namespace

Result<void> Watch::check(double done) const {
  if (cancelled()) return fail(ErrorCode::kInterrupted, "interrupted while measuring");
  if (progress) progress(done);
  return {};
}

SweepEffort quick_effort() {
  return {.coarse_seconds = 0.001, .coarse_samples = 1, .fine_seconds = 0.005, .fine_samples = 3, .quick = true};
}

ReadSampler::ReadSampler(numa::Team& team, const ReadMemory& memory)
    : team_(team), memory_(memory), cursors_(memory.workers.size()), node_of_(memory.workers.size()) {
  ENSURE(static_cast<int>(memory.workers.size()) == team.workers(), "each worker has its memory");
  largest_block_ = smallest_largest_piece(memory);
  team_.run([this](numa::Worker& worker) { node_of_[static_cast<size_t>(worker.rank)] = worker.node; });
}

void ReadSampler::read_some(Cursor& cursor, std::span<const ReadSpan> pieces, const ReadConfig& config) {
  const int64_t block = min_bytes(config.pattern);
  const auto rest = [&] { return pieces[cursor.piece].bytes - cursor.offset; };
  while (rest() < block) {
    cursor.piece = cursor.piece + 1 == pieces.size() ? 0 : cursor.piece + 1;
    cursor.offset = 0;
  }
  const int64_t blocks = std::min(rest() / block, std::max<int64_t>(1, kSomeBytes / block));
  cursor.folded ^= config.probe->run(pieces[cursor.piece].data + cursor.offset, blocks * block, config.pattern);
  cursor.offset += blocks * block;
  cursor.bytes += blocks * block;
}

ReadRate ReadSampler::sample(const ReadConfig& config, double seconds) {
  ENSURE(min_bytes(config.pattern) <= largest_block_, "each worker has a piece that the pattern fits into");
  team_.run([&](numa::Worker& worker) {
    const auto rank = static_cast<size_t>(worker.rank);
    Cursor cursor = cursors_[rank];
    cursor.bytes = 0;
    worker.barrier();
    const Clock::time_point start = Clock::now();
    do {
      read_some(cursor, memory_.workers[rank], config);
      cursor.seconds = seconds_since(start);
    } while (cursor.seconds < seconds);
    cursors_[rank] = cursor;
  });
  ReadRate rate;
  rate.nodes.resize(static_cast<size_t>(team_.nodes()), 0);
  for (size_t rank = 0; rank < cursors_.size(); ++rank) {
    const double own = static_cast<double>(cursors_[rank].bytes) / cursors_[rank].seconds;
    rate.all += own;
    rate.nodes[static_cast<size_t>(node_of_[rank])] += own;
  }
  return rate;
}

Result<ReadSweep> sweep_read(numa::Team& team, std::span<const ReadMemory> memories, kernels::Isa isa,
                             const SweepEffort& effort, const Watch& watch) {
  ReadSweep sweep;
  std::vector<ReadSampler> samplers;
  for (size_t m = 0; m < memories.size(); ++m) {
    samplers.emplace_back(team, memories[m]);
    for (const kernels::ReadProbe& probe : kernels::read_probes()) {
      if (!kernels::covers(isa, probe.needs)) continue;
      for (const kernels::ReadPattern& pattern : patterns(effort.quick, smallest_largest_piece(memories[m])))
        sweep.entries.push_back({.memory = m, .config = {&probe, pattern}, .rate = {}, .samples = 0});
    }
  }
  ENSURE(!sweep.entries.empty(), "there is a probe for every CPU that cpuinfer runs on, and a piece it can read");

  std::vector<Samples> samples(sweep.entries.size());
  const auto sample = [&](size_t i, double seconds) {
    ReadEntry& entry = sweep.entries[i];
    samples[i].add(samplers[entry.memory].sample(entry.config, seconds));
    entry.rate = samples[i].medians();
    ++entry.samples;
  };
  const auto best = [&] {
    const auto lower = [](const ReadEntry& a, const ReadEntry& b) { return a.rate.all < b.rate.all; };
    return static_cast<size_t>(std::max_element(sweep.entries.begin(), sweep.entries.end(), lower) -
                               sweep.entries.begin());
  };

  const auto coarse = static_cast<size_t>(effort.coarse_samples) * sweep.entries.size();
  for (size_t n = 0; n < coarse; ++n) {
    TRY(watch.check(0.8 * static_cast<double>(n) / static_cast<double>(coarse)));
    sample(n % sweep.entries.size(), effort.coarse_seconds);
  }
  // An entry's first samples are dropped when it is looked at closely: they were short. Whoever is on top is sampled
  // until the one on top has all of its samples; each entry once at the most, so that this ends also on a machine whose
  // speed falls all the time, and then takes longer.
  std::vector<bool> fine(sweep.entries.size(), false);
  const int usual = 8 * effort.fine_samples;
  size_t top = best();
  for (int n = 0; !fine[top] || sweep.entries[top].samples < effort.fine_samples; ++n) {
    if (!fine[top]) {
      fine[top] = true;
      samples[top] = {};
      sweep.entries[top].samples = 0;
    }
    TRY(watch.check(0.8 + 0.2 * std::min(n, usual) / usual));
    sample(top, effort.fine_seconds);
    top = best();
  }
  sweep.best = top;
  return sweep;
}

Result<ReadBuffers> make_read_buffers(numa::Team& team, const numa::Topology& topology, int64_t bytes_per_node,
                                      numa::Pages pages) {
  ReadBuffers made;
  made.memory.pages = pages == numa::Pages::kHuge ? "2 MiB" : "4 KiB";
  made.memory.workers.resize(static_cast<size_t>(team.workers()));
  for (int node = 0; node < team.nodes(); ++node) {
    TRY_ASSIGN(numa::NodeBuffer buffer, numa::NodeBuffer::allocate(bytes_per_node, node, topology, pages));
    made.buffers.push_back(std::move(buffer));
  }
  team.run([&](numa::Worker& worker) {
    numa::NodeBuffer& buffer = made.buffers[static_cast<size_t>(worker.node)];
    const numa::Range units = numa::split(bytes_per_node / kUnitBytes, worker.count_in_node, worker.rank_in_node);
    std::byte* const begin = buffer.data() + units.begin * kUnitBytes;
    // Not zeros: they might be one page, or be compressed by the host.
    std::memset(begin, 0x3c + worker.rank % 16, static_cast<size_t>(units.count() * kUnitBytes));
    made.memory.workers[static_cast<size_t>(worker.rank)] = {{begin, units.count() * kUnitBytes}};
  });
  int64_t huge = 0;
  for (const numa::NodeBuffer& buffer : made.buffers) {
    const int64_t bytes = buffer.huge_page_bytes();
    huge = bytes < 0 || huge < 0 ? -1 : huge + bytes;
  }
  made.huge_share = huge < 0 ? -1 : static_cast<double>(huge) / static_cast<double>(bytes_per_node * team.nodes());
  return made;
}

}  // namespace cpuinfer::bench
