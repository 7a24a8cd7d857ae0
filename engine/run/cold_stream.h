// ColdStream: reads the cold superblocks of a step from the pages of the KV store, layer by layer, ahead of attention.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "engine/model/cold_pages.h"
#include "engine/model/config.h"
#include "engine/storage/io_queue.h"
#include "engine/storage/page_file.h"
#include "numa/topology.h"

namespace cpuinfer::run {

/// What streaming did since it was made.
struct ColdStatistics {
  int64_t bytes = 0;        ///< read
  double wait_seconds = 0;  ///< that attention waited for bytes
};

class ColdStream final : public model::ColdPages {
 public:
  /// Superblocks of a round and rounds in memory: enough bytes under way for a fast disk, of Qwen3-30B-A3B 16 MiB in
  /// each of 4 rounds.
  static constexpr int kStages = 4;
  static int superblocks_per_round(int nodes, const model::ModelConfig& config);
  /// Pages of one layer that all rounds in memory take: for the plan, KvCache::node_bytes of one_layer(config).
  static int stage_pages(int nodes, const model::ModelConfig& config);
  static model::ModelConfig one_layer(const model::ModelConfig& config);

  /// Takes its memory. Errors: kDoesNotFit, of storage::IoQueue::create.
  static Result<std::unique_ptr<ColdStream>> create(const model::ModelConfig& config, const storage::PageShape& shape,
                                                    int nodes, const numa::Topology& topology);

  /// Begins a step: `pages` are those of its cold superblocks, four for each, in the order of Batch::cold. They stay
  /// open until end().
  void begin(std::vector<const storage::PageLayers*> pages);
  /// Ends it. Errors: kRuntime (the disk failed), kBadInput (a page is damaged), with the file; `damaged` then names
  /// the page by its place in `pages`.
  Result<void> end(std::optional<size_t>& damaged);

  ColdStatistics statistics() const { return statistics_; }
  std::span<const numa::NodeBuffer> memory() const { return stage_.memory(); }

  int superblocks_per_round() const override { return superblocks_per_round_; }
  model::KvCache& stage() override { return stage_; }
  int first_page(int layer, int round) const override;
  void wait(int layer, int round) override;
  void verify(int layer, int round, const numa::Worker& worker) override;
  void release(int layer, int round) override;

 private:
  ColdStream(model::KvCache stage, storage::IoQueue queue, const storage::PageShape& shape, int superblocks_per_round);
  int pages_per_round() const { return superblocks_per_round_ * model::kSuperblockPages; }
  int64_t turn(int layer, int round) const { return int64_t{layer} * rounds_ + round; }
  int pages_in(int round) const;
  void submit(int64_t turn);
  void complete(const storage::IoCompletion& completion);
  void fail_at(size_t page, Error error, bool damaged);

  model::KvCache stage_;
  storage::IoQueue queue_;
  storage::PageShape shape_;
  int superblocks_per_round_;
  // Where pages of a stage lie, for transfers and for checksums: [kStages][pages_per_round][kv_heads].
  std::vector<iovec> parts_;
  std::vector<std::byte*> pieces_;
  // Of the step that runs.
  std::vector<const storage::PageLayers*> pages_;
  int rounds_ = 0;
  int pending_[kStages] = {};
  std::atomic<bool> failed_ = false;
  std::mutex mutex_;
  std::optional<Error> error_;
  std::optional<size_t> damaged_;
  ColdStatistics statistics_;
};

}  // namespace cpuinfer::run
