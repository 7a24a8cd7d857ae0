#include "bench/load.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <fstream>

#include "base/format.h"
#include "bench/timing.h"
#include "engine/load/memory_plan.h"
#include "engine/load/packed_file.h"
#include "engine/load/packed_loader.h"
#include "engine/model/config.h"
#include "engine/model/model.h"
#include "numa/memory_limit.h"

namespace cpuinfer::bench {
namespace {

using checkpoint::Checkpoint;

// Drops the files from the page cache, and says which part of them is still there.
double drop_files(const Checkpoint& checkpoint, const std::optional<load::PackedFile>& packed) {
  constexpr int64_t kPage = 4096;
  struct OpenFile {
    int descriptor;
    int64_t bytes;
  };
  std::vector<OpenFile> files;
  if (packed) files.push_back({packed->file().descriptor(), packed->data_offset() + packed->bytes()});
  for (int i = 0; i < checkpoint.file_count(); ++i)
    files.push_back({checkpoint.file(i).descriptor(), checkpoint.file(i).file_bytes()});
  int64_t pages = 0, cached = 0;
  for (const OpenFile& file : files) {
    const auto bytes = static_cast<size_t>(file.bytes);
    ::posix_fadvise(file.descriptor, 0, 0, POSIX_FADV_DONTNEED);
    pages += ceil_div(file.bytes, kPage);
    void* const mapping = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.descriptor, 0);
    if (mapping == MAP_FAILED) continue;
    std::vector<unsigned char> resident(static_cast<size_t>(ceil_div(file.bytes, kPage)));
    if (::mincore(mapping, bytes, resident.data()) == 0)
      cached += std::count_if(resident.begin(), resident.end(), [](unsigned char flags) { return (flags & 1) != 0; });
    ::munmap(mapping, bytes);
  }
  return static_cast<double>(cached) / static_cast<double>(pages);
}

// Bytes of a line of /proc/self/status, or -1.
int64_t status_bytes(std::string_view name) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(name)) return std::strtoll(line.c_str() + name.size(), nullptr, 10) * 1024;
  return -1;
}

// The most memory that the process has held since its construction, beyond what it held then.
class PeakMemory {
 public:
  PeakMemory() {
    std::ofstream clear("/proc/self/clear_refs");
    clear << 5 << std::flush;  // VmHWM starts again
    works_ = clear.good();
    before_ = status_bytes("VmRSS:");
  }
  int64_t bytes() const { return works_ && before_ >= 0 ? status_bytes("VmHWM:") - before_ : -1; }

 private:
  bool works_ = false;
  int64_t before_ = -1;
};

std::string gigabytes(int64_t bytes) { return format("{:.2f} GB", static_cast<double>(bytes) / 1e9); }

}  // namespace

double LoadFigures::share_of_disk() const {
  std::vector<double> shares;
  for (size_t i = 1; i < loads.size(); ++i) shares.push_back(rate(i) / disk_rate(i));
  return median(std::move(shares));
}

Result<LoadFigures> measure_load(numa::Team& team, const numa::Topology& topology, const LoadBenchOptions& options,
                                 const LoadBenchWatch& watch) {
  TRY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(options.model));
  TRY_ASSIGN(const model::ModelConfig config, model::parse_model_config(checkpoint.config()));
  numa::MemoryLimit available = numa::available_memory();
  if (options.memory_limit_bytes > 0 && options.memory_limit_bytes < available.bytes)
    available = {options.memory_limit_bytes, "--memory-limit"};
  load::PlanRequest request;  // of the least there is beside the weights
  request.worker_nodes = team.worker_nodes();
  TRY_ASSIGN(const load::PlannedModel planned, load::plan_model(config, request, topology, available));
  model::Model* const model = planned.model.get();
  std::optional<load::PackedFile> packed;
  load::PackedLayout layout;
  if (checkpoint.is_packed()) {
    TRY_ASSIGN(packed, load::PackedFile::open(checkpoint.packed_path(), !options.warm));
    TRY_ASSIGN(layout, packed->layout_for(*model));
  } else {
    TRY(load::check_tensors(*model, checkpoint));
  }
  TRY(planned.plan.check("use a model with fewer layers: the weights alone must fit"));

  LoadFigures figures;
  figures.model = options.model.string();
  figures.files = packed ? 1 : checkpoint.file_count();
  figures.packed = packed.has_value();
  figures.workers = team.workers();
  figures.nodes = team.nodes();
  figures.file_bytes = checkpoint.total_bytes();
  figures.warm = options.warm;
  const auto measure = [&]() -> Result<void> {
    if (options.warm || !figures.disk_note.empty()) return {};
    const Watch disk_watch = {watch.cancel, [&](double done) {
                                if (watch.progress) watch.progress("disk", static_cast<int64_t>(1000 * done), 1000);
                              }};
    DiskOptions disk_options;
    disk_options.model = options.model;
    disk_options.seconds = options.disk_seconds;
    auto disk = measure_disk(topology, disk_options, disk_watch);
    if (!disk && disk.error().code == ErrorCode::kNotFound && figures.disks.empty()) {
      figures.disk_note = disk.error().message;  // files too small to be read for seconds
      return {};
    }
    TRY_ASSIGN(DiskFigure figure, std::move(disk));
    figures.disks.push_back(std::move(figure));
    return {};
  };

  load::LoadStatistics statistics;
  load::LoadOptions load_options;
  load_options.cancel = watch.cancel;
  load_options.statistics = &statistics;
  if (options.warm) load_options.page_cache = checkpoint::PageCache::kFill;
  if (watch.progress)
    load_options.progress = [&](int64_t done, int64_t total) { watch.progress("loading", done, total); };
  std::optional<load::WeightMemory> memory;
  for (int i = 0; i <= options.repeats; ++i) {
    TRY(measure());
    if (!options.warm) figures.still_cached = std::max(figures.still_cached, drop_files(checkpoint, packed));
    const PeakMemory peak;
    const Clock::time_point start = Clock::now();
    if (!memory) {
      TRY_ASSIGN(memory, load::allocate_weights(*model, team.nodes(), topology));
      for (const numa::NodeBuffer& buffer : *memory) figures.packed_bytes += buffer.size();
    }
    if (packed)
      TRY(load::read_packed(*packed, layout, layout.parts, team, topology, load_options));
    else
      TRY(load::read_weights(*model, checkpoint, team, topology, load_options));
    statistics.seconds = seconds_since(start);
    figures.loads.push_back(statistics);
    // The weights are new to the process in the first load only.
    const int64_t extra = peak.bytes() - (i == 0 ? figures.packed_bytes : 0);
    if (extra >= 0) figures.peak_extra_bytes = std::max(figures.peak_extra_bytes, extra);
  }
  TRY(measure());
  return figures;
}

std::string load_text(const LoadFigures& figures) {
  const auto plural = [](int count) { return count == 1 ? "" : "s"; };
  std::string text = format("{}: {} in {} file{}, {} thread{} on {} node{}\n\n", figures.model,
                            gigabytes(figures.file_bytes), figures.files, plural(figures.files), figures.workers,
                            plural(figures.workers), figures.nodes, plural(figures.nodes));
  text += format("{:<22} {:>8} {:>8} {:>10} {:>9} {:>9}\n", "", "GB/s", "seconds", "of disk", "reading",
                 figures.packed ? "checking" : "packing");
  const bool disk = !figures.disks.empty();
  for (size_t i = 0; i < figures.loads.size(); ++i) {
    const load::LoadStatistics& load = figures.loads[i];
    const double busy = load.read_seconds + load.pack_seconds;
    if (disk) text += format("{:<22} {:>8.2f}\n", "disk, sequential", figures.disks[i].winner().bytes_per_second / 1e9);
    text += format("{:<22} {:>8.2f} {:>8.2f} {:>10} {:>7.0f} % {:>7.0f} %\n",
                   i == 0 ? "load into new memory" : format("load {}", i), figures.rate(i) / 1e9, load.seconds,
                   disk ? format("{:.0f} %", 100 * figures.rate(i) / figures.disk_rate(i)) : "-",
                   100 * load.read_seconds / busy, 100 * load.pack_seconds / busy);
  }
  if (disk) {
    text += format("{:<22} {:>8.2f}\n\n", "disk, sequential", figures.disks.back().winner().bytes_per_second / 1e9);
    text += format("disk: {}; {}\n", figures.disks[0].what, figures.disks[0].cache);
    if (figures.loads.size() > 1)
      text += format("loading reaches {:.0f} % of the disk's sequential read (median of {})\n",
                     100 * figures.share_of_disk(), figures.loads.size() - 1);
  } else {
    text += format("\n{}\n", figures.warm ? "from the page cache, after the first load"
                                          : "the disk was not measured: " + figures.disk_note);
  }
  const load::LoadStatistics& last = figures.loads.back();
  text += format("{:.0f} % of the bytes came straight from the disk, the others by way of the page cache\n",
                 100 * static_cast<double>(last.direct_bytes) / static_cast<double>(std::max<int64_t>(last.bytes, 1)));
  if (figures.still_cached > 0.01)
    text += format("not all cold: {:.0f} % of the files stayed in the page cache\n", 100 * figures.still_cached);
  text += format("memory: {} packed, {} of buffers", gigabytes(figures.packed_bytes), format_bytes(last.buffer_bytes));
  if (figures.peak_extra_bytes >= 0)
    text += format("; at the most {} beside the packed weights", format_bytes(figures.peak_extra_bytes));
  return text + "\n";
}

Json load_json(const LoadFigures& figures) {
  Json json;
  json.set("model", figures.model);
  json.set("files", figures.files);
  json.set("file_bytes", figures.file_bytes);
  json.set("packed_bytes", figures.packed_bytes);
  json.set("threads", figures.workers);
  json.set("nodes", figures.nodes);
  json.set("packed_file", figures.packed);
  json.set("warm", figures.warm);
  json.set("still_cached", figures.still_cached);
  Json disks(Json::Array{});
  for (const DiskFigure& disk : figures.disks) disks.push_back(disk.winner().bytes_per_second / 1e9);
  json.set("disk_gb_s", std::move(disks));
  if (!figures.disks.empty()) json.set("cache", figures.disks[0].cache);
  Json loads(Json::Array{});
  for (size_t i = 0; i < figures.loads.size(); ++i) {
    const load::LoadStatistics& load = figures.loads[i];
    Json entry;
    entry.set("new_memory", i == 0);
    entry.set("seconds", load.seconds);
    entry.set("gb_s", figures.rate(i) / 1e9);
    if (!figures.disks.empty()) entry.set("share_of_disk", figures.rate(i) / figures.disk_rate(i));
    entry.set("bytes", load.bytes);
    entry.set("direct_bytes", load.direct_bytes);
    entry.set("buffer_bytes", load.buffer_bytes);
    entry.set("read_seconds", load.read_seconds);
    entry.set("pack_seconds", load.pack_seconds);
    loads.push_back(std::move(entry));
  }
  json.set("loads", std::move(loads));
  if (!figures.disks.empty() && figures.loads.size() > 1) json.set("share_of_disk", figures.share_of_disk());
  if (figures.peak_extra_bytes >= 0) json.set("peak_extra_bytes", figures.peak_extra_bytes);
  return json;
}

}  // namespace cpuinfer::bench
