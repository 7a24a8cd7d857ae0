#include "engine/run/cold_stream.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/format.h"

namespace cpuinfer::run {
namespace {

// Superblocks of a round, if the nodes need no particular number.
constexpr int kSuperblocksPerRound = 8;

}  // namespace

int ColdStream::superblocks_per_round(int nodes, const model::ModelConfig& config) {
  // A whole number of superblocks for each stripe: which node a superblock of a round is on must not depend on the
  // round.
  return round_up(kSuperblocksPerRound, model::KvStripes(config.kv_heads, nodes).stripes());
}

int ColdStream::stage_pages(int nodes, const model::ModelConfig& config) {
  return kStages * superblocks_per_round(nodes, config) * model::kSuperblockPages;
}

model::ModelConfig ColdStream::one_layer(const model::ModelConfig& config) {
  model::ModelConfig layer = config;
  layer.layers = 1;
  return layer;
}

Result<std::unique_ptr<ColdStream>> ColdStream::create(const model::ModelConfig& config,
                                                       const storage::PageShape& shape, int nodes,
                                                       const numa::Topology& topology) {
  TRY_ASSIGN(model::KvCache stage,
             model::KvCache::create(one_layer(config), stage_pages(nodes, config), nodes, topology));
  const int superblocks = superblocks_per_round(nodes, config);
  TRY_ASSIGN(storage::IoQueue queue, storage::IoQueue::create(kStages * superblocks * model::kSuperblockPages));
  return std::unique_ptr<ColdStream>(new ColdStream(std::move(stage), std::move(queue), shape, superblocks));
}

ColdStream::ColdStream(model::KvCache stage, storage::IoQueue queue, const storage::PageShape& shape,
                       int superblocks_per_round)
    : stage_(std::move(stage)), queue_(std::move(queue)), shape_(shape), superblocks_per_round_(superblocks_per_round) {
  for (int page = 0; page < stage_.pages(); ++page) {
    for (int head = 0; head < shape.pieces; ++head) {
      pieces_.push_back(reinterpret_cast<std::byte*>(stage_.keys(0, head, page)));
      parts_.push_back({pieces_.back(), static_cast<size_t>(shape.piece_bytes)});
    }
  }
}

void ColdStream::begin(std::vector<const storage::PageLayers*> pages) {
  pages_ = std::move(pages);
  rounds_ = ceil_div(static_cast<int>(pages_.size()), pages_per_round());
  failed_ = false;
  error_.reset();
  damaged_.reset();
  std::fill(std::begin(pending_), std::end(pending_), 0);
  for (int64_t turn = 0; turn < kStages; ++turn) submit(turn);
}

Result<void> ColdStream::end(std::optional<size_t>& damaged) {
  while (queue_.in_flight() > 0) queue_.wait();  // of a step that failed
  pages_.clear();
  damaged = damaged_;
  return error_ ? Result<void>(std::unexpected(*error_)) : Result<void>();
}

int ColdStream::pages_in(int round) const {
  return std::min(pages_per_round(), static_cast<int>(pages_.size()) - round * pages_per_round());
}

int ColdStream::first_page(int layer, int round) const {
  return static_cast<int>(turn(layer, round) % kStages) * pages_per_round();
}

void ColdStream::submit(int64_t turn) {
  if (turn >= int64_t{shape_.layers} * rounds_ || failed_) return;
  const int layer = static_cast<int>(turn / rounds_), round = static_cast<int>(turn % rounds_);
  const int stage = static_cast<int>(turn % kStages);
  const int count = pages_in(round);
  pending_[stage] = count;
  for (int i = 0; i < count; ++i) {
    const size_t place = static_cast<size_t>(stage * pages_per_round() + i);
    const storage::PageLayers& page = *pages_[static_cast<size_t>(round * pages_per_round() + i)];
    queue_.submit(
        {.descriptor = page.file().descriptor(),
         .offset = page.offset(layer),
         .parts =
             std::span(parts_).subspan(place * static_cast<size_t>(shape_.pieces), static_cast<size_t>(shape_.pieces)),
         .tag = static_cast<uint64_t>(turn) * static_cast<uint64_t>(pages_per_round()) + static_cast<uint64_t>(i)});
  }
}

void ColdStream::complete(const storage::IoCompletion& completion) {
  const int64_t turn = static_cast<int64_t>(completion.tag) / pages_per_round();
  --pending_[turn % kStages];
  statistics_.bytes += shape_.layer_bytes();
  if (completion.result) return;
  const size_t page = static_cast<size_t>(turn % rounds_ * pages_per_round()) +
                      completion.tag % static_cast<uint64_t>(pages_per_round());
  fail_at(page, completion.result.error(), false);
}

void ColdStream::fail_at(size_t page, Error error, bool damaged) {
  const std::scoped_lock lock(mutex_);
  if (error_) return;
  error.message = format("{}: {}", pages_[page]->file().path().string(), error.message);
  error_ = std::move(error);
  if (damaged) damaged_ = page;
  failed_ = true;
}

void ColdStream::wait(int layer, int round) {
  const int stage = static_cast<int>(turn(layer, round) % kStages);
  const auto started = std::chrono::steady_clock::now();
  while (pending_[stage] > 0 && !failed_) complete(queue_.wait());
  statistics_.wait_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

void ColdStream::verify(int layer, int round, const numa::Worker& worker) {
  const numa::Range share = worker.share(pages_in(round));
  const size_t piece_count = static_cast<size_t>(shape_.pieces);
  for (int64_t i = share.begin; i < share.end && !failed_; ++i) {
    const size_t stage_page = static_cast<size_t>(first_page(layer, round) + i);
    const size_t page = static_cast<size_t>(round * pages_per_round() + i);
    const uint64_t expected = pages_[page]->checksum(layer);
    const uint64_t found =
        storage::layer_checksum(std::span(pieces_).subspan(stage_page * piece_count, piece_count), shape_.piece_bytes);
    if (found == expected) continue;
    fail_at(page,
            {ErrorCode::kBadInput,
             format("layer {} is damaged: its checksum is {:016x}, expected {:016x}", layer, found, expected)},
            true);
  }
}

void ColdStream::release(int layer, int round) { submit(turn(layer, round) + kStages); }

}  // namespace cpuinfer::run
