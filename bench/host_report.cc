#include "bench/host_report.h"

#include <algorithm>

#include "base/format.h"
#include "base/types.h"

namespace cpuinfer::bench {
namespace {

/// "512 B", "2 KiB", "1 MiB": sizes that are whole.
std::string whole_size(int64_t bytes) {
  return bytes >= 1_MiB   ? format("{} MiB", bytes / 1_MiB)
         : bytes >= 1_KiB ? format("{} KiB", bytes / 1_KiB)
                          : format("{} B", bytes);
}

std::string describe(const ReadEntry& entry, const HostFigures& figures) {
  const kernels::ReadPattern& p = entry.config.pattern;
  return format("{}, {} stream{} of {}, {}, {} pages", entry.config.probe->name, p.streams, p.streams == 1 ? "" : "s",
                whole_size(p.stream_bytes),
                p.prefetch_bytes == 0 ? "no prefetch" : format("prefetch {} ahead", whole_size(p.prefetch_bytes)),
                figures.memories[entry.memory].pages);
}

std::string sweep_table(const HostFigures& figures) {
  std::vector<int64_t> distances;
  for (const ReadEntry& entry : figures.read.entries)
    if (std::find(distances.begin(), distances.end(), entry.config.pattern.prefetch_bytes) == distances.end())
      distances.push_back(entry.config.pattern.prefetch_bytes);
  std::string text = format("{:<8} {:<8} {:>8} {:>8}", "pages", "loop", "streams", "of");
  for (const int64_t distance : distances)
    text += format(" {:>8}", distance == 0 ? "none" : format("+{}", whole_size(distance)));
  text += "\n";
  // Entries of one row follow each other, in the order of the distances.
  for (size_t i = 0; i < figures.read.entries.size(); ++i) {
    const ReadEntry& entry = figures.read.entries[i];
    const kernels::ReadPattern& p = entry.config.pattern;
    if (p.prefetch_bytes == distances.front())
      text += format("{:<8} {:<8} {:>8} {:>8}", figures.memories[entry.memory].pages, entry.config.probe->name,
                     p.streams, whole_size(p.stream_bytes));
    text += format(" {:>7.2f}{}", entry.rate.all / 1e9, i == figures.read.best ? "*" : " ");
    if (p.prefetch_bytes == distances.back()) text += "\n";
  }
  return text;
}

Json entry_json(const ReadEntry& entry, const HostFigures& figures) {
  Json json;
  json.set("gb_s", entry.rate.all / 1e9);
  json.set("pages", figures.memories[entry.memory].pages);
  json.set("probe", entry.config.probe->name);
  json.set("streams", entry.config.pattern.streams);
  json.set("stream_bytes", entry.config.pattern.stream_bytes);
  json.set("prefetch_bytes", entry.config.pattern.prefetch_bytes);
  json.set("samples", entry.samples);
  return json;
}

Json disk_json(const DiskFigure& disk) {
  const auto entry = [](const DiskEntry& e) {
    Json json;
    json.set("gb_s", e.bytes_per_second / 1e9);
    json.set("readers", e.readers);
    json.set("block_bytes", e.block_bytes);
    return json;
  };
  Json json = entry(disk.winner());
  json.set("what", disk.what);
  json.set("cache", disk.cache);
  json.set("direct", disk.direct);
  Json sweep(Json::Array{});
  for (const DiskEntry& e : disk.entries) sweep.push_back(entry(e));
  json.set("sweep", std::move(sweep));
  return json;
}

}  // namespace

std::string host_text(const HostFigures& figures) {
  const ReadEntry& best = figures.read.winner();
  std::string text =
      format("{}: {} thread{} on {} node{}, {}\n\n", figures.cpu, figures.workers, figures.workers == 1 ? "" : "s",
             figures.nodes, figures.nodes == 1 ? "" : "s", kernels::isa_names(figures.isa));
  text += format("{:<22} {:>10.2f} GB/s   {}\n", "read bandwidth", best.rate.all / 1e9, describe(best, figures));
  if (figures.nodes > 1)
    for (size_t node = 0; node < best.rate.nodes.size(); ++node)
      text += format("{:<22} {:>10.2f} GB/s\n", format("  of node {}", node), best.rate.nodes[node] / 1e9);
  for (const PeakFigure& peak : figures.peaks)
    text += format("{:<22} {:>10.1f} GFLOP/s{}\n", peak.probe->name, peak.all / 1e9,
                   figures.workers > 1 ? format("   one thread alone {:.1f}", peak.one / 1e9) : "");
  for (const BarrierFigure& barrier : figures.barriers)
    text += format("{:<22} {:>10.0f} ns\n", barrier.name, barrier.nanoseconds);
  if (figures.disk) {
    const DiskEntry& fastest = figures.disk->winner();
    text += format("{:<22} {:>10.2f} GB/s   {} reader{} of {}, {}; {}\n", "disk, sequential",
                   fastest.bytes_per_second / 1e9, fastest.readers, fastest.readers == 1 ? "" : "s",
                   whole_size(fastest.block_bytes), figures.disk->what, figures.disk->cache);
  }

  text += format("\nRead bandwidth in GB/s by prefetch distance; {} per node, the best is marked\n",
                 format_bytes(figures.buffer_bytes));
  text += sweep_table(figures);
  for (const HostMemory& memory : figures.memories)
    if (memory.pages == "2 MiB" && memory.huge_share >= 0 && memory.huge_share < 0.99)
      text += format("only {:.0f} % of the memory asked for in 2 MiB pages lies in such\n", 100 * memory.huge_share);
  if (figures.disk) {
    text += format("\n{:<8} {:>8} {:>10}\n", "readers", "block", "GB/s");
    for (const DiskEntry& entry : figures.disk->entries)
      text +=
          format("{:<8} {:>8} {:>10.2f}\n", entry.readers, whole_size(entry.block_bytes), entry.bytes_per_second / 1e9);
  }
  return text;
}

Json host_json(const HostFigures& figures) {
  Json json;
  json.set("cpu", figures.cpu);
  json.set("threads", figures.workers);
  json.set("nodes", figures.nodes);
  json.set("isa", kernels::isa_names(figures.isa));
  json.set("buffer_bytes", figures.buffer_bytes);
  Json read = entry_json(figures.read.winner(), figures);
  Json nodes(Json::Array{});
  for (const double node : figures.read.winner().rate.nodes) nodes.push_back(node / 1e9);
  read.set("node_gb_s", std::move(nodes));
  Json sweep(Json::Array{});
  for (const ReadEntry& entry : figures.read.entries) sweep.push_back(entry_json(entry, figures));
  read.set("sweep", std::move(sweep));
  json.set("read", std::move(read));
  Json memories(Json::Array{});
  for (const HostMemory& memory : figures.memories) {
    Json row;
    row.set("pages", memory.pages);
    row.set("huge_share", memory.huge_share < 0 ? Json() : Json(memory.huge_share));
    memories.push_back(std::move(row));
  }
  json.set("memories", std::move(memories));
  Json peaks(Json::Array{});
  for (const PeakFigure& peak : figures.peaks) {
    Json row;
    row.set("name", peak.probe->name);
    row.set("gflop_s", peak.all / 1e9);
    row.set("one_worker_gflop_s", peak.one / 1e9);
    peaks.push_back(std::move(row));
  }
  json.set("peaks", std::move(peaks));
  Json barriers(Json::Array{});
  for (const BarrierFigure& barrier : figures.barriers) {
    Json row;
    row.set("name", barrier.name);
    row.set("ns", barrier.nanoseconds);
    barriers.push_back(std::move(row));
  }
  json.set("barriers", std::move(barriers));
  json.set("disk", figures.disk ? disk_json(*figures.disk) : Json());
  return json;
}

std::string host_summary(const HostFigures& figures) {
  std::string text = format("read {:.1f} GB/s", figures.read.winner().rate.all / 1e9);
  for (const PeakFigure& peak : figures.peaks)
    text += format("{} {} {:.0f} GFLOP/s", &peak == figures.peaks.data() ? ";" : ",", peak.probe->name, peak.all / 1e9);
  for (const BarrierFigure& barrier : figures.barriers)
    text += format("; {} {:.0f} ns", barrier.name, barrier.nanoseconds);
  return text;
}

}  // namespace cpuinfer::bench
