#include "engine/run/placement_report.h"

#include <algorithm>

#include "base/format.h"
#include "base/types.h"

namespace cpuinfer::run {
namespace {

// Looking takes about 0.1 us a page.
constexpr int64_t kMostPages = 1 << 20;
constexpr int64_t kPageBytes = 4096;

bool is_stray(const numa::WorkerPlacement& worker) {
  return worker.last_cpu >= 0 && !worker.cpus.empty() &&
         std::find(worker.cpus.begin(), worker.cpus.end(), worker.last_cpu) == worker.cpus.end();
}

}  // namespace

double PlacementReport::local_share() const {
  int64_t local = 0, other = 0;
  for (const PlacementLine& line : lines) {
    local += line.pages.local;
    other += line.pages.other;
  }
  return local + other == 0 ? 1 : static_cast<double>(local) / static_cast<double>(local + other);
}

int PlacementReport::stray_workers() const {
  return static_cast<int>(std::count_if(workers.begin(), workers.end(), is_stray));
}

std::string PlacementReport::sentence() const {
  int64_t pages = 0;
  for (const PlacementLine& line : lines) pages += line.pages.local + line.pages.other;
  std::string text = format("{:.2f} % of {} pages are on their nodes", 100 * local_share(), pages);
  if (local_share() < kLeastLocalShare) text += format("; most likely because {}", cause);
  if (stray_workers() > 0) text += format("; {} of {} threads are not on their CPUs", stray_workers(), workers.size());
  return text;
}

std::string PlacementReport::table() const {
  std::string text =
      format("{:<24}{:>8}{:>14}{:>14}{:>14}\n", "purpose", "node", "local pages", "elsewhere", "not yet used");
  for (const PlacementLine& line : lines)
    text += format("{:<24}{:>8}{:>14}{:>14}{:>14}\n", line.purpose, line.node_id, line.pages.local, line.pages.other,
                   line.pages.untouched);
  for (size_t rank = 0; rank < workers.size(); ++rank) {
    const numa::WorkerPlacement& worker = workers[rank];
    text += format("thread {:<4} node {}, CPU {}", rank, worker_node_ids[rank],
                   worker.cpus.empty() ? "any" : format("{}", fmt::join(worker.cpus, ",")));
    if (is_stray(worker)) text += format(", but last seen on CPU {}", worker.last_cpu);
    text += '\n';
  }
  return text + sentence();
}

Json PlacementReport::json() const {
  Json json;
  Json placement{Json::Array{}};
  for (const PlacementLine& line : lines) {
    Json entry;
    entry.set("purpose", line.purpose);
    entry.set("node", line.node_id);
    entry.set("planned_pages", line.pages.local + line.pages.other + line.pages.untouched);
    entry.set("local_pages", line.pages.local);
    entry.set("other_pages", line.pages.other);
    entry.set("untouched_pages", line.pages.untouched);
    placement.push_back(std::move(entry));
  }
  json.set("placement", std::move(placement));
  json.set("local_percent", 100 * local_share());
  Json threads{Json::Array{}};
  for (size_t rank = 0; rank < workers.size(); ++rank) {
    Json cpus{Json::Array{}};
    for (const int cpu : workers[rank].cpus) cpus.push_back(cpu);
    Json entry;
    entry.set("rank", static_cast<int64_t>(rank));
    entry.set("node", worker_node_ids[rank]);
    entry.set("cpu", workers[rank].last_cpu);
    entry.set("planned_cpus", std::move(cpus));
    threads.push_back(std::move(entry));
  }
  json.set("workers", std::move(threads));
  json.set("cause", cause);
  return json;
}

Result<PlacementReport> measure_placement(const std::vector<PlacedMemory>& memory, const numa::Team& team,
                                          const numa::Topology& topology) {
  PlacementReport report;
  int64_t all_pages = 0;
  for (const PlacedMemory& piece : memory) all_pages += ceil_div(piece.bytes, kPageBytes);
  std::vector<int64_t> misplaced(topology.nodes().size(), 0);
  for (const PlacedMemory& piece : memory) {
    if (piece.bytes == 0) continue;
    const int id = topology.home(piece.node).id;
    // Its part of the pages that are looked at.
    const int64_t pages = ceil_div(piece.bytes, kPageBytes);
    const int64_t most = all_pages <= kMostPages ? pages : std::max<int64_t>(pages * kMostPages / all_pages, 1);
    TRY_ASSIGN(const numa::PageCount count, numa::count_pages(piece.data, piece.bytes, id, most));
    auto line = std::find_if(report.lines.begin(), report.lines.end(), [&](const PlacementLine& known) {
      return known.purpose == piece.purpose && known.node_id == id;
    });
    if (line == report.lines.end()) line = report.lines.insert(line, {piece.purpose, id, {}});
    line->pages.local += count.local;
    line->pages.other += count.other;
    line->pages.untouched += count.untouched;
    misplaced[static_cast<size_t>(piece.node) % misplaced.size()] += count.other;
  }
  report.workers = team.where();
  for (const numa::WorkerPlacement& worker : report.workers)
    report.worker_node_ids.push_back(topology.home(worker.node).id);
  if (report.local_share() < kLeastLocalShare) {
    const auto most = std::max_element(misplaced.begin(), misplaced.end());
    report.cause = numa::misplacement_cause(topology, static_cast<int>(most - misplaced.begin()));
  }
  return report;
}

}  // namespace cpuinfer::run
