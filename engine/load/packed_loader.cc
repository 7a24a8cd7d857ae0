#include "engine/load/packed_loader.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "base/format.h"
#include "engine/load/fingerprint.h"
#include "engine/load/loading.h"
#include "engine/storage/aligned_bytes.h"
#include "engine/storage/io_queue.h"
#include "numa/memory.h"

namespace cpuinfer::load {
namespace {

using model::PackedMatrix;
using storage::Digest128;

constexpr int64_t kAlignment = storage::DirectFile::kAlignment;
// In flight in all, at the least, and of each worker: disks that answer many requests at once are read at full speed.
constexpr int kLeastReads = 32;
constexpr int kLeastReadsEach = 2;

bool is_aligned(int64_t offset) { return offset % kAlignment == 0; }

// Consecutive units of one segment of a matrix: consecutive in the file and on their node.
struct UnitBlock {
  const PackedWeight* weight;
  size_t part;
  int segment;
  numa::Range units;
};

// What one worker needs and has found. In cache lines of its own.
struct alignas(128) WorkerRead {
  std::optional<storage::IoQueue> queue;
  std::vector<UnitBlock> blocks;   // [depth] in flight, by tag
  std::vector<Digest128> digests;  // [parts]
  double read_seconds = 0, check_seconds = 0;
};

class PackedReading {
 public:
  PackedReading(const PackedFile& file, std::span<const PackedPart> parts, Loading& loading)
      : file_(file), parts_(parts), loading_(loading) {}

  // One worker. bounce: [depth] buffers of bounce_bytes each for what is not whole pages.
  void run(std::span<const UnitBlock> blocks, std::atomic<int64_t>& next, int node, std::byte* bounce,
           int64_t bounce_bytes, bool reports, WorkerRead& share) {
    const Clock::time_point start = Clock::now();
    storage::IoQueue& queue = *share.queue;
    std::vector<uint64_t> idle;
    for (int tag = queue.depth() - 1; tag >= 0; --tag) idle.push_back(static_cast<uint64_t>(tag));
    for (;;) {
      while (!idle.empty() && !loading_.stopped()) {
        const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
        if (i >= static_cast<int64_t>(blocks.size())) break;
        const uint64_t tag = idle.back();
        idle.pop_back();
        share.blocks[tag] = blocks[static_cast<size_t>(i)];
        submit(queue, share.blocks[tag], node, tag, bounce + static_cast<int64_t>(tag) * bounce_bytes);
      }
      if (queue.in_flight() == 0) break;
      const Clock::time_point waiting = Clock::now();
      const storage::IoCompletion completion = queue.wait();
      share.read_seconds += seconds_since(waiting);
      const UnitBlock& block = share.blocks[completion.tag];
      if (completion.result) {
        finish(block, node, bounce + static_cast<int64_t>(completion.tag) * bounce_bytes, share);
      } else {
        Error error = completion.result.error();
        error.message = format("{}: {} (reading {})", file_.path().string(), error.message, parts_[block.part].name);
        loading_.stop(std::move(error));
      }
      idle.push_back(completion.tag);
      if (reports) loading_.report();
    }
    share.check_seconds += seconds_since(start) - share.read_seconds;
  }

  Result<void> read_vectors(const PackedLayout& layout, size_t part_number, Digest128& sum) {
    const PackedPart& part = parts_[part_number];
    const storage::AlignedBytes bytes(part.bytes);
    TRY(file_.file().read(file_.data_offset() + part.offset, bytes.all()));
    for (const PackedWeight& weight : layout.weights_of(part)) {
      const std::span<const std::byte> values(bytes.data() + (weight.offset - part.offset),
                                              static_cast<size_t>(weight.bytes));
      sum += piece_digest(weight_name(weight.spec), 0, values);
      for (int node = 0; node < weight.spec.vector->nodes(); ++node)
        std::memcpy(weight.spec.vector->on(node).data(), values.data(), values.size());
    }
    loading_.add_done(part.bytes);
    return {};
  }

  // Of a block: where it is in the file, and where it goes.
  int64_t file_begin(const UnitBlock& block) const {
    const PackedMatrix& matrix = *block.weight->spec.matrix;
    return file_.data_offset() + block.weight->offset +
           (int64_t{block.segment} * matrix.units() + block.units.begin) * unit_bytes(matrix);
  }
  static std::byte* target(const UnitBlock& block, int node) {
    return reinterpret_cast<std::byte*>(block.weight->spec.matrix->unit(node, block.segment, block.units.begin));
  }
  static int64_t unit_bytes(const PackedMatrix& matrix) {
    return matrix.unit_elements() * static_cast<int64_t>(sizeof(bf16));
  }
  static int64_t bytes(const UnitBlock& block) { return block.units.count() * unit_bytes(*block.weight->spec.matrix); }
  // Whole pages both in the file and in memory.
  bool in_place(const UnitBlock& block, int node) const {
    return is_aligned(file_begin(block)) && is_aligned(bytes(block)) &&
           is_aligned(static_cast<int64_t>(reinterpret_cast<uintptr_t>(target(block, node))));
  }

 private:
  void submit(storage::IoQueue& queue, const UnitBlock& block, int node, uint64_t tag, std::byte* bounce) const {
    const int64_t begin = file_begin(block), end = begin + bytes(block);
    const int64_t first = begin / kAlignment * kAlignment;
    const bool direct = in_place(block, node);
    queue.submit({.descriptor = file_.file().descriptor(),
                  .offset = direct ? begin : first,
                  .data = direct ? target(block, node) : bounce,
                  .bytes = direct ? end - begin : round_up(end, kAlignment) - first,
                  .tag = tag});
  }

  void finish(const UnitBlock& block, int node, const std::byte* bounce, WorkerRead& share) {
    if (!in_place(block, node))
      std::memcpy(target(block, node), bounce + file_begin(block) % kAlignment, static_cast<size_t>(bytes(block)));
    share.digests[block.part] +=
        units_digest(*block.weight->spec.matrix, weight_name(block.weight->spec), node, block.segment, block.units);
    loading_.add_done(bytes(block));
  }

  const PackedFile& file_;
  std::span<const PackedPart> parts_;
  Loading& loading_;
};

// What a node reads, in the order of the file. Copies are read for the first node only.
std::vector<UnitBlock> make_unit_blocks(const PackedLayout& layout, std::span<const PackedPart> parts, int node) {
  std::vector<UnitBlock> blocks;
  for (size_t p = 0; p < parts.size(); ++p) {
    for (const PackedWeight& weight : layout.weights_of(parts[p])) {
      const PackedMatrix* const matrix = weight.spec.matrix;
      if (matrix == nullptr || (matrix->split().is_replicated() && node != 0)) continue;
      const numa::Range units = matrix->shard(node).units;
      const int64_t most = std::max<int64_t>(kBlockBytes / PackedReading::unit_bytes(*matrix), 1);
      const int64_t count = ceil_div(units.count(), most);
      for (int segment = 0; segment < matrix->segments(); ++segment) {
        for (int64_t i = 0; i < count; ++i) {
          const numa::Range share = numa::split(units.count(), static_cast<int>(count), static_cast<int>(i));
          blocks.push_back({&weight, p, segment, {units.begin + share.begin, units.begin + share.end}});
        }
      }
    }
  }
  return blocks;
}

void copy_to_other_nodes(const PackedLayout& layout, std::span<const PackedPart> parts, numa::Team& team) {
  team.run([&](numa::Worker& worker) {
    if (worker.rank_in_node != 0 || worker.node == 0) return;
    for (const PackedPart& part : parts) {
      for (const PackedWeight& weight : layout.weights_of(part)) {
        const PackedMatrix* const matrix = weight.spec.matrix;
        if (matrix == nullptr || !matrix->split().is_replicated()) continue;
        std::memcpy(matrix->shard(worker.node).data, matrix->shard(0).data,
                    static_cast<size_t>(matrix->shard_bytes(0)));
      }
    }
  });
}

}  // namespace

Result<void> read_packed(const PackedFile& file, const PackedLayout& layout, std::span<const PackedPart> parts,
                         numa::Team& team, const numa::Topology& topology, const LoadOptions& options) {
  const Clock::time_point start = Clock::now();
  int64_t total_bytes = 0;
  for (const PackedPart& part : parts) total_bytes += part.bytes;
  Loading loading(options, total_bytes);
  PackedReading reading(file, parts, loading);
  std::vector<Digest128> sums(parts.size());
  for (size_t p = 0; p < parts.size(); ++p)
    if (layout.weights_of(parts[p]).front().spec.vector != nullptr) TRY(reading.read_vectors(layout, p, sums[p]));

  const std::unique_ptr<numa::Team> more = more_loaders(team, topology);
  numa::Team& loaders = more ? *more : team;
  const int depth = std::max(kLeastReadsEach, ceil_div(kLeastReads, loaders.workers()));
  std::vector<std::vector<UnitBlock>> blocks;
  std::vector<int64_t> bounce_bytes;  // [nodes] for one block; 0: none is needed
  for (int node = 0; node < team.nodes(); ++node) {
    blocks.push_back(make_unit_blocks(layout, parts, node));
    int64_t most = 0;
    for (const UnitBlock& block : blocks.back())
      if (!reading.in_place(block, node)) most = std::max(most, PackedReading::bytes(block));
    bounce_bytes.push_back(most == 0 ? 0 : round_up(most, kAlignment) + kAlignment);
  }
  std::vector<WorkerRead> shares(static_cast<size_t>(loaders.workers()));
  for (WorkerRead& share : shares) {
    TRY_ASSIGN(share.queue, storage::IoQueue::create(depth));
    share.blocks.resize(static_cast<size_t>(depth));
    share.digests.resize(parts.size());
  }
  std::vector<std::atomic<int64_t>> next(blocks.size());
  std::vector<numa::NodeBuffer> bounces(blocks.size());
  loaders.run([&](numa::Worker& worker) {
    const int64_t bytes = bounce_bytes[worker.node] * depth;
    if (worker.rank_in_node == 0 && bytes > 0) {
      auto buffer = numa::NodeBuffer::allocate(bytes * worker.count_in_node, worker.node, topology);
      if (buffer)
        bounces[worker.node] = std::move(*buffer);
      else
        loading.stop(std::move(buffer).error());
    }
    worker.barrier();
    if (loading.stopped()) return;
    reading.run(blocks[worker.node], next[worker.node], worker.node,
                bounces[worker.node].data() + bytes * worker.rank_in_node, bounce_bytes[worker.node], worker.rank == 0,
                shares[worker.rank]);
  });
  TRY(loading.result());
  for (const WorkerRead& share : shares)
    for (size_t p = 0; p < parts.size(); ++p) sums[p] += share.digests[p];
  for (size_t p = 0; p < parts.size(); ++p)
    if (sums[p] != parts[p].digest) return file.damaged(parts[p], sums[p]);
  if (team.nodes() > 1) copy_to_other_nodes(layout, parts, team);
  loading.report();
  if (options.statistics != nullptr) {
    LoadStatistics& statistics = *options.statistics;
    statistics = {.bytes = loading.done_bytes(),
                  .direct_bytes = file.file().direct() ? loading.done_bytes() : 0,
                  .workers = loaders.workers(),
                  .seconds = seconds_since(start)};
    for (const numa::NodeBuffer& buffer : bounces) statistics.buffer_bytes += buffer.size();
    for (const WorkerRead& share : shares) {
      statistics.read_seconds += share.read_seconds;
      statistics.pack_seconds += share.check_seconds;
    }
  }
  return {};
}

}  // namespace cpuinfer::load
