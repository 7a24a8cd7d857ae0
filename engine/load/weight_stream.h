// Reads the weights that are not in memory while a step needs them: an expert cache, and slots through which the parts
// go that every step reads.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "engine/load/expert_cache.h"
#include "engine/load/packed_file.h"
#include "engine/load/stream_plan.h"
#include "engine/model/model.h"
#include "engine/model/weight_source.h"
#include "engine/storage/io_queue.h"
#include "numa/memory.h"
#include "numa/team.h"
#include "numa/topology.h"

namespace cpuinfer::load {

/// Of all steps so far.
struct StreamStatistics {
  int64_t expert_hits = 0, expert_misses = 0;  ///< of experts in a step: in memory, or read for it
  int64_t bytes = 0;                           ///< read of the file
  double wait_seconds = 0;                     ///< that workers waited for the disk
  double step_seconds = 0;                     ///< that the steps took
};

/// One reader for all workers: in a step, worker 0 starts and ends reads while the others wait, or while nobody does
/// because the disk is ahead. What has arrived is hashed by all workers before they use it, and compared before the
/// step ends. Views file and layout.
class WeightStream final : public model::WeightSource {
 public:
  /// Takes the memory of all slots. layout: of the model. Errors: kDoesNotFit, of IoQueue::create.
  static Result<std::unique_ptr<WeightStream>> create(const model::ModelConfig& config, const StreamPlan& plan,
                                                      const PackedFile& file, const PackedLayout& layout,
                                                      numa::Team& team, const numa::Topology& topology,
                                                      storage::IoBackend backend = storage::IoBackend::kAuto);
  ~WeightStream() override;

  bool streams_experts() const override { return cache_.has_value(); }
  bool await_part(numa::Worker& worker, int layer, model::LayerPart part) noexcept override;
  std::optional<numa::Range> next_experts(numa::Worker& worker, int layer, const model::ExpertSlots& slots,
                                          numa::Range previous) noexcept override;
  void begin_step(int rows) override;
  Result<void> end_step() override;

  StreamStatistics statistics() const;
  storage::IoBackend backend() const { return queue_.backend(); }
  /// The memory of all slots, a buffer for each kind and node.
  std::vector<const numa::NodeBuffer*> memory() const;

 private:
  enum Kind { kAttention, kMlp, kExpert, kKinds };
  // Memory for parts of one kind, and for those that go through it in turns, where the turn is.
  struct Slots {
    PartReads reads;
    std::vector<numa::NodeBuffer> memory;  // [nodes]
    std::vector<int> layer_parts;          // [layers] number of the part that is streamed, or -1
    std::vector<int> turns;                // the parts, in order
    std::vector<uint8_t> ready;            // [slots]
    int64_t use = -1, next_read = 0;       // turns: the one in use, the first that is not asked for
  };
  // A part that is being read.
  struct Job {
    Kind kind = kExpert;
    int part = 0, slot = 0;
    size_t extent = 0;  // the next to be asked for, from `offset` on
    int64_t offset = 0;
    int in_flight = 0;
    bool failed = false;
  };
  // A part that has come since the workers last hashed.
  struct Arrival {
    Kind kind = kExpert;
    int part = 0;
  };
  // What a worker has hashed of each arrival. In cache lines of its own.
  struct alignas(128) WorkerDigests {
    std::vector<storage::Digest128> sums;
  };

  WeightStream(const model::ModelConfig& config, const PackedFile& file, const PackedLayout& layout,
               storage::IoQueue queue, int workers);
  Result<void> add_slots(Kind kind, PartReads reads, int count, const numa::Topology& topology);

  // Worker 0, while the others wait.
  void read(Kind kind, int part, int slot);
  void ask_for_all();
  void submit_requests();
  template <typename Condition>
  void wait_until(Condition&& condition);
  void complete(const storage::IoCompletion& completion);
  void finish(Job& job);
  void place(const Job& job);
  bool round_is_here() const;
  void fail_step(Error error);
  void verify();
  // All workers.
  void hash(const numa::Worker& worker);
  // Nobody else.
  void drain();
  void drop(const Arrival& arrival);

  const PackedFile& file_;
  const PackedLayout& layout_;
  std::vector<bool> moe_layers_;
  int experts_ = 0, experts_per_token_ = 0;
  std::array<Slots, kKinds> slots_;
  std::vector<int> expert_parts_;  // [layers][experts]
  std::optional<ExpertCache> cache_;
  std::vector<int32_t> used_;  // of the layer
  numa::Range round_;
  int layer_ = -1;            // the last whose experts were asked for in this step
  bool reads_ahead_ = false;  // the step has so many rows that the next layer needs almost all experts

  storage::IoQueue queue_;  // ends before the slots that it reads into
  std::vector<Job> jobs_;
  std::vector<int> free_jobs_;
  std::vector<int> waiting_;  // jobs that are not asked for entirely, in order: a ring
  size_t first_waiting_ = 0, waiting_count_ = 0;
  std::vector<Arrival> arrivals_;
  std::vector<WorkerDigests> digests_;  // [workers]
  bool failed_ = false;
  std::optional<Error> error_;
  int64_t bytes_ = 0;
  double wait_seconds_ = 0, step_seconds_ = 0;
  std::chrono::steady_clock::time_point step_started_;
};

}  // namespace cpuinfer::load
