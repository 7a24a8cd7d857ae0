#include "engine/load/pack.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <system_error>
#include <vector>

#include "base/format.h"
#include "engine/load/fingerprint.h"
#include "engine/load/loader.h"
#include "engine/load/loading.h"
#include "engine/storage/aligned_bytes.h"
#include "engine/storage/io_queue.h"
#include "numa/memory.h"
#include "numa/memory_limit.h"

namespace cpuinfer::load {
namespace {

using storage::Digest128;

constexpr int64_t kPieceBytes = 4_MiB;  // of a write

// A new file; removed again unless kept.
class NewFile {
 public:
  static Result<NewFile> create(const std::filesystem::path& path, int64_t bytes) {
    TRY_ASSIGN(storage::DirectFile file, storage::DirectFile::open(path, storage::FileAccess::kCreate));
    NewFile created(std::move(file));
    TRY(created.file_.reserve(bytes));
    return created;
  }
  NewFile(NewFile&& other) noexcept : file_(std::move(other.file_)) {}
  NewFile& operator=(NewFile&&) = delete;
  ~NewFile() {
    if (file_.descriptor() < 0 || kept_) return;
    std::error_code ignored;
    std::filesystem::remove(file_.path(), ignored);
  }
  const storage::DirectFile& file() const { return file_; }
  void keep() { kept_ = true; }

 private:
  explicit NewFile(storage::DirectFile file) : file_(std::move(file)) {}
  storage::DirectFile file_;
  bool kept_ = false;
};

// What one worker has hashed of each part of a group. In cache lines of its own.
struct alignas(128) WorkerDigests {
  std::vector<Digest128> parts;
};

class Packer {
 public:
  Packer(PackedLayout& layout, const storage::DirectFile& file, int64_t data_offset, numa::NodeBuffer buffer,
         storage::IoQueue queue, numa::Team& team, const LoadOptions& options)
      : layout_(layout),
        file_(file),
        data_offset_(data_offset),
        buffer_(std::move(buffer)),
        queue_(std::move(queue)),
        team_(team),
        options_(options),
        digests_(static_cast<size_t>(team.workers())) {}

  Result<void> write_all(const FillWeights& fill) {
    const int64_t half = buffer_.size() / 2;
    size_t turn = 0;
    for (size_t begin = 0; begin < layout_.parts.size();) {
      size_t end = begin + 1;
      while (end < layout_.parts.size() && end_of(layout_.parts[end]) - layout_.parts[begin].offset <= half) ++end;
      const int64_t bytes = end_of(layout_.parts[end - 1]) - layout_.parts[begin].offset;
      // A part of more than half of the buffer has it for itself.
      const bool whole = bytes > half;
      TRY(wait_for(turn));
      if (whole) TRY(wait_for(1 - turn));
      std::byte* const memory = buffer_.data() + (whole || turn == 0 ? 0 : half);
      TRY(write_group(begin, end, bytes, memory, fill, turn));
      if (!whole) turn = 1 - turn;
      begin = end;
      if (whole) TRY(wait_for(turn));
    }
    TRY(wait_for(0));
    return wait_for(1);
  }

 private:
  static int64_t end_of(const PackedPart& part) { return round_up(part.offset + part.bytes, kPackedAlignment); }

  // Fills and hashes the parts [begin, end) in `memory` and begins to write them.
  Result<void> write_group(size_t begin, size_t end, int64_t bytes, std::byte* memory, const FillWeights& fill,
                           size_t turn) {
    if (options_.cancel != nullptr && options_.cancel->load(std::memory_order_relaxed)) return fail_interrupted();
    std::memset(memory, 0, static_cast<size_t>(bytes));
    const int64_t first = layout_.parts[begin].offset;
    std::vector<model::WeightSpec> specs;
    for (size_t p = begin; p < end; ++p) {
      for (const PackedWeight& weight : layout_.weights_of(layout_.parts[p])) {
        std::byte* const place = memory + (weight.offset - first);
        if (weight.spec.matrix != nullptr)
          weight.spec.matrix->place(0, reinterpret_cast<bf16*>(place));
        else
          weight.spec.vector->place(0, reinterpret_cast<float*>(place));
        specs.push_back(weight.spec);
      }
    }
    if (Result<void> filled = fill(specs); !filled) {
      if (filled.error().code == ErrorCode::kInterrupted) return fail_interrupted();
      return filled;
    }
    hash_group(begin, end);
    for (int64_t done = 0; done < bytes; done += kPieceBytes) {
      if (queue_.in_flight() == queue_.depth()) TRY(wait_for_one());
      ++in_flight_[turn];
      queue_.submit({.descriptor = file_.descriptor(),
                     .write = true,
                     .offset = data_offset_ + first + done,
                     .data = memory + done,
                     .bytes = std::min(kPieceBytes, bytes - done),
                     .tag = turn});
    }
    return {};
  }

  static std::unexpected<Error> fail_interrupted() {
    return fail(ErrorCode::kInterrupted, "packing was interrupted; the unfinished file is removed");
  }

  void hash_group(size_t begin, size_t end) {
    for (WorkerDigests& worker : digests_) worker.parts.assign(end - begin, {});
    team_.run([&](numa::Worker& worker) {
      std::vector<Digest128>& sums = digests_[static_cast<size_t>(worker.rank)].parts;
      for (size_t p = begin; p < end; ++p) {
        for (const PackedWeight& weight : layout_.weights_of(layout_.parts[p])) {
          if (weight.spec.matrix == nullptr) {
            if (worker.rank == 0)
              sums[p - begin] += piece_digest(weight_name(weight.spec), 0, std::as_bytes(weight.spec.vector->on(0)));
            continue;
          }
          const numa::Range share = worker.share(weight.spec.matrix->units());
          for (int segment = 0; segment < weight.spec.matrix->segments(); ++segment)
            sums[p - begin] += units_digest(*weight.spec.matrix, weight_name(weight.spec), 0, segment, share);
        }
      }
    });
    for (const WorkerDigests& worker : digests_)
      for (size_t p = begin; p < end; ++p) layout_.parts[p].digest += worker.parts[p - begin];
  }

  Result<void> wait_for_one() {
    storage::IoCompletion completion = queue_.wait();
    --in_flight_[completion.tag];
    if (completion.result) {
      written_ += kPieceBytes;
      if (options_.progress) options_.progress(std::min(written_, layout_.bytes), layout_.bytes);
      return {};
    }
    completion.result.error().message = format("{}: {}", file_.path().string(), completion.result.error().message);
    return completion.result;
  }
  // Until nothing is being written of this half of the buffer.
  Result<void> wait_for(size_t turn) {
    while (in_flight_[turn] > 0) TRY(wait_for_one());
    return {};
  }

  PackedLayout& layout_;
  const storage::DirectFile& file_;
  int64_t data_offset_;
  numa::NodeBuffer buffer_;  // outlives the queue
  storage::IoQueue queue_;
  numa::Team& team_;
  const LoadOptions& options_;
  std::vector<WorkerDigests> digests_;  // [workers]
  std::array<int, 2> in_flight_{};      // writes of each half of the buffer
  int64_t written_ = 0;
};

}  // namespace

Result<PackStatistics> write_packed(model::Model& model, const FillWeights& fill, const std::filesystem::path& path,
                                    numa::Team& team, const numa::Topology& topology, const LoadOptions& options) {
  const Clock::time_point start = Clock::now();
  PackedLayout layout = lay_out_packed(model);
  const int64_t header_bytes = static_cast<int64_t>(packed_header(layout, {}).size());
  int64_t buffer_bytes = std::min(kPackBufferBytes, layout.bytes);
  for (const PackedPart& part : layout.parts)
    buffer_bytes = std::max(buffer_bytes, round_up(part.bytes, kPackedAlignment));
  buffer_bytes = round_up(buffer_bytes, 2 * kPackedAlignment);
  const numa::MemoryLimit available = numa::available_memory();
  if (const int64_t needed = buffer_bytes + kBlocksBytes; needed > available.bytes)
    return fail(ErrorCode::kDoesNotFit,
                format("packing needs {} of memory, for the largest part of the model and for reading it, and this "
                       "process may take {} ({})",
                       format_bytes(needed), format_bytes(available.bytes), available.reason));
  TRY_ASSIGN(NewFile created, NewFile::create(path, header_bytes + layout.bytes));
  TRY_ASSIGN(numa::NodeBuffer buffer, numa::NodeBuffer::allocate(buffer_bytes, 0, topology));
  constexpr int64_t kMostWrites = 64;
  TRY_ASSIGN(
      storage::IoQueue queue,
      storage::IoQueue::create(static_cast<int>(std::clamp<int64_t>(buffer_bytes / kPieceBytes, 2, kMostWrites))));
  Packer packer(layout, created.file(), header_bytes, std::move(buffer), std::move(queue), team, options);
  TRY(packer.write_all(fill));

  PackStatistics statistics{.bytes = header_bytes + layout.bytes, .fingerprint = {}};
  for (const PackedPart& part : layout.parts) statistics.fingerprint += part.digest;
  const std::vector<std::byte> header = packed_header(layout, statistics.fingerprint);
  const storage::AlignedBytes aligned(header_bytes);
  std::copy(header.begin(), header.end(), aligned.data());
  TRY(created.file().write(0, aligned.all()));
  TRY(created.file().sync());
  created.keep();
  statistics.seconds = seconds_since(start);
  return statistics;
}

}  // namespace cpuinfer::load
