#include "bench/host.h"

#include <algorithm>

#include "base/format.h"
#include "base/types.h"
#include "numa/memory_limit.h"

namespace cpuinfer::bench {
namespace {

constexpr int64_t kUnitBytes = 64_KiB;  // the least that a worker reads

int64_t default_buffer(Effort effort, int64_t available, const numa::Team& team) {
  const int64_t wanted = effort == Effort::kFull ? 1_GiB : effort == Effort::kShort ? 256_MiB : 8_MiB;
  const int64_t least = team.workers() * kUnitBytes;
  return std::max(std::min(wanted, available / 8 / team.nodes()), least);
}

Result<int64_t> buffer_bytes(const HostOptions& options, const std::vector<numa::Pages>& kinds,
                             const numa::Team& team) {
  const numa::MemoryLimit limit = numa::available_memory();
  const int64_t bytes =
      options.buffer_bytes > 0 ? options.buffer_bytes : default_buffer(options.effort, limit.bytes, team);
  const int64_t least = team.workers() * kUnitBytes;
  if (bytes < least)
    return fail(ErrorCode::kUsage, format("a buffer of {} per node is too small: {} workers read 64 KiB each at least, "
                                          "which takes {}",
                                          format_bytes(bytes), team.workers(), format_bytes(least)));
  const auto copies = static_cast<int64_t>(kinds.size()) * team.nodes();
  if (bytes > limit.bytes / copies)
    return fail(ErrorCode::kDoesNotFit,
                format("{} buffer{} of {} (nodes times kinds of pages) are more than the {} of memory that can be used "
                       "({}): ask for smaller ones",
                       copies, copies == 1 ? "" : "s", format_bytes(bytes), format_bytes(limit.bytes), limit.reason));
  return round_up(bytes, kUnitBytes);
}

}  // namespace

Result<HostFigures> measure_host(numa::Team& team, const numa::Topology& topology, kernels::Isa isa,
                                 const HostOptions& options, const HostWatch& watch) {
  if (!kernels::covers(isa, kernels::Isa::kAvx2))
    return fail(ErrorCode::kUnsupported, format("the measurements need avx2, but this run may use {}: ask for a higher "
                                                "level or none",
                                                kernels::isa_names(isa)));
  const auto stage = [&](const char* what) {
    return Watch{.cancel = watch.cancel, .progress = [&watch, what](double done) {
                   if (watch.progress) watch.progress(what, done);
                 }};
  };
  const bool full = options.effort == Effort::kFull;
  HostFigures figures;
  figures.cpu = topology.cpu_model();
  figures.workers = team.workers();
  figures.nodes = team.nodes();
  figures.isa = isa;

  {
    // Huge pages are what the engine's weights lie in.
    std::vector<numa::Pages> kinds = {numa::Pages::kHuge};
    if (options.effort != Effort::kShort) kinds.push_back(numa::Pages::kSmall);
    TRY_ASSIGN(figures.buffer_bytes, buffer_bytes(options, kinds, team));
    std::vector<ReadBuffers> buffers;
    std::vector<ReadMemory> memories;
    for (const numa::Pages pages : kinds) {
      TRY(stage("memory").check(0));
      TRY_ASSIGN(ReadBuffers made, make_read_buffers(team, topology, figures.buffer_bytes, pages));
      figures.memories.push_back({made.memory.pages, made.huge_share});
      memories.push_back(made.memory);
      buffers.push_back(std::move(made));
    }
    SweepEffort effort;
    if (options.effort == Effort::kShort)
      effort = {.coarse_seconds = 0.004, .coarse_samples = 1, .fine_seconds = 0.02, .fine_samples = 5, .quick = true};
    if (options.effort == Effort::kQuick) effort = quick_effort();
    TRY_ASSIGN(figures.read, sweep_read(team, memories, isa, effort, stage("memory")));
  }
  TRY_ASSIGN(figures.peaks, measure_peaks(team, isa, full ? 0.1 : 0.02, stage("peaks")));
  TRY(stage("barriers").check(0));
  figures.barriers = measure_barriers(team, full ? 0.2 : 0.02);
  if (!options.model.empty() || !options.disk_directory.empty()) {
    DiskOptions disk;
    disk.model = options.model;
    disk.directory = options.disk_directory;
    if (!full) {
      disk.temporary_bytes = 16_MiB;
      disk.seconds = 0.1;
    }
    TRY_ASSIGN(figures.disk, measure_disk(topology, disk, stage("disk")));
  }
  return figures;
}

}  // namespace cpuinfer::bench
