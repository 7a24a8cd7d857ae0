// Engine: a model that is planned, loaded and ready to compute, and the sequences that live in its KV cache.
#pragma once

#include <array>
#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/load/loader.h"
#include "engine/load/memory_plan.h"
#include "engine/load/packed_file.h"
#include "engine/load/weight_stream.h"
#include "engine/model/generation_config.h"
#include "engine/model/model.h"
#include "engine/run/admission.h"
#include "engine/run/cold_stream.h"
#include "engine/run/kv_store.h"
#include "engine/run/placement_report.h"
#include "kernels/isa.h"
#include "kernels/registry.h"
#include "numa/machine_selection.h"
#include "numa/team.h"
#include "numa/topology.h"

namespace cpuinfer::run {

/// A model without a checkpoint: weights are random numbers made in memory (load::fill_synthetic). For benchmarks.
struct SyntheticModel {
  std::string name;  ///< for describe()
  Json config;       ///< as config.json
  uint64_t seed = 0;
};

struct EngineOptions {
  std::filesystem::path model;              ///< a Hugging Face directory
  std::optional<SyntheticModel> synthetic;  ///< instead of `model`
  int64_t context_tokens = 0;               ///< of a sequence; 0: the model's limit, at most kDefaultContextTokens
  int sequences = 1;                        ///< most sequences in a step
  int64_t kv_tokens = 0;                    ///< of the KV cache, all sequences together, each in whole pages of
                                            ///< kernels::kLeafTokens; 0: context_tokens for each
  int experts = 0;                          ///< experts per token; 0: as config.json says
  std::optional<model::RopeConfig> rope;    ///< replaces the scaling of config.json; its theta is not used
  bool rope_by_length = false;              ///< YaRN by the length of each sequence (model::sequence_rope); not
                                            ///< together with `rope`
  int threads = 0;                          ///< 0: one per physical core
  numa::MachineOptions machine;             ///< nodes and CPUs to use
  /// Plan for this machine, which is not there, instead of for this one: its nodes, its memory, and no thread.
  std::optional<numa::Topology> planned_machine = {};
  int chunk_tokens = 512;          ///< most tokens of a prefill step
  int logit_rows = 1;              ///< most rows per step whose logits may be asked for
  std::string isa;                 ///< cap on instruction sets; empty: all that the CPU has
  std::string numerics = "auto";   ///< kernels::KernelRequest
  std::string gemm = "auto";       ///< kernels::KernelRequest
  int64_t memory_limit_bytes = 0;  ///< further cap on memory; 0: none
  bool stream_weights = false;     ///< of a packed model: read during steps what does not fit into memory
  bool whole_experts = false;      ///< each expert on one node instead of a slice of it on every node
  storage::IoBackend stream_backend = storage::IoBackend::kAuto;  ///< of reads during steps
  std::filesystem::path expert_usage_file;  ///< load::read_expert_usage, to balance whole experts by; empty: none
  KvStoreOptions kv_store;                  ///< pages on disk, that prompts begin with; no directory: none
  bool kv_on_disk = false;                  ///< pages that memory has no room for live in the KV store
};

inline constexpr int64_t kDefaultContextTokens = 32768;

class Engine;

/// The tokens of one request in the KV cache. Move-only; gives its pages back when it ends, and the promise of those
/// that it has not taken. Used by one thread, and not after its engine.
class Sequence {
 public:
  Sequence(Sequence&& other) noexcept;
  Sequence& operator=(Sequence&& other) noexcept;
  ~Sequence();

  /// Tokens whose keys and values are in the cache.
  std::span<const TokenId> tokens() const { return tokens_; }
  int64_t length() const { return static_cast<int64_t>(tokens_.size()); }
  /// The scaling of its positions: chosen when it was started, and the same until its end.
  const model::RopeConfig& rope() const { return rope_; }
  /// What it was started for: the most tokens that it may hold.
  int64_t planned_tokens() const { return planned_tokens_; }
  /// Forgets everything from position `length` on; where pages are on disk, perhaps up to a superblock more.
  /// REQUIRES: length <= length().
  void truncate(int64_t length);
  /// Tokens, from the first on, whose keys and values are on disk and not in memory.
  int64_t cold_tokens() const { return static_cast<int64_t>(cold_.size()) * kernels::kLeafTokens; }

 private:
  friend class Engine;
  Sequence(Engine& engine, int64_t planned_tokens, int64_t promised_pages);
  void release_pages(size_t keep);
  /// Empties the cache from position length() on.
  void clear_beyond_end();

  Engine* engine_;
  int64_t planned_tokens_, promised_pages_;
  model::RopeConfig rope_;
  model::RopeFrequencies frequencies_;
  std::vector<TokenId> tokens_;
  std::vector<int> pages_;                 // -1: cold
  PageChain chain_;                        // with a KV store only
  std::vector<storage::PageLayers> cold_;  // the first pages, whole superblocks, that are on disk only
  int64_t last_step_ = -1;                 // that it had a part in
};

/// Where the tokens that a sequence begins with came from.
struct ReusedTokens {
  int64_t memory = 0;  ///< were in the sequence
  int64_t store = 0;   ///< were read from the KV store
  int64_t total() const { return memory + store; }
};

/// Which rows of an append() want logits.
enum class LogitRows { kNone, kLast, kAll };

struct AppendOptions {
  LogitRows logit_rows = LogitRows::kLast;
  /// Called after each step with the rows that have logits: the number of the first of them among the appended tokens,
  /// and logits [rows][vocab] row by row. Views die with the call.
  std::function<void(int64_t first, std::span<const std::span<const float>> logits)> logits = {};
  /// Called after each step with tokens done of those to append.
  std::function<void(int64_t done, int64_t total)> progress = {};
  /// When it becomes true, the append stops after the running step with kInterrupted; what was done stays.
  const std::atomic<bool>* cancel = nullptr;
};

/// What one sequence does in a step.
struct StepRequest {
  Sequence* sequence = nullptr;
  std::span<const TokenId> tokens;  ///< to be computed after those in the sequence; at least one
  LogitRows logit_rows = LogitRows::kLast;
};

/// The logits of the last rows() tokens of one request. Views the engine, until its next step.
class StepLogits {
 public:
  StepLogits() = default;
  StepLogits(model::Rows<float> logits, int rows, int vocab) : logits_(logits), rows_(rows), vocab_(vocab) {}
  int rows() const { return rows_; }
  /// [vocab]. REQUIRES: 0 <= row < rows().
  std::span<const float> operator[](int row) const { return {logits_[row], static_cast<size_t>(vocab_)}; }

 private:
  model::Rows<float> logits_;
  int rows_ = 0, vocab_ = 0;
};

/// Decode: every request of the step has one token. Prefill: all other steps.
enum class StepKind { kDecode, kPrefill };

/// What steps cost, summed up.
struct StepProfile {
  model::StepCounters phases{};  ///< bytes and flops of all workers; times as the mean over the workers
  int64_t steps = 0;
  int64_t tokens = 0;  ///< rows of all steps
  int64_t ns = 0;      ///< from the beginning to the end of the steps

  StepProfile& operator+=(const StepProfile& other);
};

/// How long it took to take the pages of KV cache and workspace from the system.
struct PageStatistics {
  int64_t bytes = 0;
  double seconds = 0;
};

/// Owns everything: topology, team, kernels, model, weights, KV cache. Lives behind a pointer; used by one thread.
class Engine {
 public:
  /// Opens the directory (or takes the synthetic config), checks config and tensors, chooses kernels and plans memory.
  /// Reads no weights. For a planned machine it makes no thread and times no kernel.
  /// Errors: of each of these parts; a plan that does not fit is not one yet (see plan()).
  static Result<std::unique_ptr<Engine>> prepare(const EngineOptions& options);

  /// Allocates all memory, loads or makes the weights, and takes the pages of all the rest, so that no step takes any.
  /// Errors: kDoesNotFit with the plan's table if it does not fit, kUsage for a planned machine, kInterrupted.
  Result<void> load(const load::LoadOptions& options = {});

  const model::ModelConfig& config() const { return model_->config(); }
  /// The last name of the model's directory, or that of the synthetic model.
  std::string model_name() const;
  const load::MemoryPlan& plan() const { return plan_; }
  /// What plan() was made from.
  const load::PlanRequest& plan_request() const { return plan_request_; }
  const model::Placement& placement() const { return placement_; }
  /// The same plan with experts whole or sliced, whatever this engine has. Errors: of load::plan_model.
  Result<load::PlannedModel> plan_placed(bool whole_experts) const;
  /// REQUIRES: the model is not synthetic.
  const checkpoint::Checkpoint& checkpoint() const;
  /// Of load(); zeros for a synthetic model.
  const load::LoadStatistics& load_statistics() const { return load_statistics_; }
  /// Of load().
  const PageStatistics& page_statistics() const { return page_statistics_; }
  const model::GenerationDefaults& generation_defaults() const { return generation_defaults_; }
  const kernels::Kernels& kernels() const { return kernels_; }
  kernels::Isa isa() const { return isa_; }
  int64_t context_tokens() const { return context_tokens_; }
  /// The part of the machine that is used; a worker's node is an index of its nodes.
  const numa::Topology& topology() const { return topology_; }
  int workers() const { return static_cast<int>(layout_.workers.size()); }
  int nodes() const { return layout_.nodes; }
  /// "model ...", "experts ...": what is printed before the first token, one fact per line.
  std::vector<std::string> describe() const;
  /// Bytes of weights that one decode step reads.
  int64_t decode_weight_bytes() const;

  /// planned_tokens: the length that the sequence may reach; it fixes the rotary frequencies of `dynamic` scaling, and
  /// the scaling where that is chosen by length, for the life of the sequence. The pages for all of them are promised:
  /// none is missing later. Errors: kUsage (over the context), of Admission::admit.
  Result<Sequence> start_sequence(int64_t planned_tokens);

  /// What is promised to the living sequences.
  const Admission& admission() const { return admission_; }

  /// The most that one step() may hold.
  const model::StepLimits& limits() const { return limits_; }

  /// One step of any mix of decode rows and prefill chunks. What a request gets does not depend on the others, not by
  /// a bit. Returns the logits of each request, in order. Allocates nothing,
  /// unless there is a KV store.
  /// REQUIRES: load() succeeded; 1 to limits().sequences requests for different sequences, their tokens and rows of
  /// logits within limits(); token ids are below config().vocab.
  /// Errors: kUsage (longer than the sequence was planned for); nothing was computed then. Those of
  /// model::Model::forward: no sequence has got a token then, and the step may be tried again. With pages on disk:
  /// kRuntime (they cannot be read or written), kBadInput (a page is damaged: its sequence has lost it and what
  /// follows).
  Result<std::span<const StepLogits>> step(std::span<const StepRequest> requests);

  /// Computes tokens after those already in the sequence, in steps of at most chunk_tokens.
  /// REQUIRES: load() succeeded; token ids are below config().vocab.
  /// Errors: kUsage (longer than the sequence was planned for), kInterrupted, those of model::Model::forward; the steps
  /// before the one that failed stay done.
  Result<void> append(Sequence& sequence, std::span<const TokenId> tokens, const AppendOptions& options);

  /// Makes the sequence hold as much of `tokens`, from the first, as it has already or the KV store has, and nothing
  /// else: the logits of what is appended are the same bits as if all had been computed. Pages of the store that are
  /// damaged are reported and not used. `progress` and `cancel` as in append(), for what is read.
  /// REQUIRES: load() succeeded. Errors: kUsage (longer than the sequence was planned for), kInterrupted.
  Result<ReusedTokens> reuse(Sequence& sequence, std::span<const TokenId> tokens, const AppendOptions& options = {});

  /// The KV store gets complete pages of all sequences by itself, while the steps after run. This writes the last,
  /// unfinished page too and returns when all is on the disk: reuse() of just these tokens then needs no computing.
  /// Without a store, or if the disk takes no more, it does nothing.
  void save(Sequence& sequence);

  /// How many of `tokens`, from the first, the KV store has for a sequence such as this, all writes done.
  int64_t stored_tokens(const Sequence& sequence, std::span<const TokenId> tokens);

  /// Absent: none was asked for, or before load().
  const KvStore* kv_store() const { return kv_store_.get(); }
  /// Tokens of KV pages that memory holds; the rest of context_tokens() for each sequence lives on disk.
  int64_t memory_tokens() const { return int64_t{kv_pages_} * kernels::kLeafTokens; }
  /// Absent: all pages have room in memory, or before load().
  const ColdStream* cold_stream() const { return cold_stream_.get(); }

  /// For benchmarks: lengthens the sequence to `length` tokens whose keys and values are random numbers of a plausible
  /// size instead of computed ones, so that a depth costs no prefill. Every worker fills its share, with GB/s; the same
  /// for any number of threads. REQUIRES: load() succeeded; length >= sequence.length(), which is a whole number of
  /// pages. Errors: kUsage (longer than the sequence was planned for).
  Result<void> fabricate_context(Sequence& sequence, int64_t length);

  /// For benchmarks: experts per token from the next step on, so that one loaded model serves several cases.
  /// REQUIRES: load() succeeded; a model with experts, 1 <= experts <= those of EngineOptions or config.json at
  /// prepare().
  void set_experts(int experts);

  /// What the steps of a kind cost since the last reset. REQUIRES: load() succeeded.
  StepProfile profile(StepKind kind);
  void reset_profile();
  /// For benchmarks: whether the phases of the next steps are counted, as they are from the start, so that the cost of
  /// counting can be measured. Steps and tokens are counted in any case. REQUIRES: load() succeeded.
  void set_counting(bool counting);

  /// Bytes that a decode step reads from disk if experts are equally likely; 0 unless weights are streamed.
  double streamed_bytes_per_token() const;
  /// What has been read during steps; zeros unless weights are streamed.
  load::StreamStatistics stream_statistics() const;
  /// What is not in memory; nothing unless weights are streamed.
  const load::StreamPlan& stream_plan() const { return stream_plan_; }
  /// The identity of the weights (load::fingerprint_weights): of a packed model as its file says, which loading has
  /// compared; else computed at the first call, from all of the memory. REQUIRES: load() succeeded.
  storage::Digest128 weights_fingerprint();

  /// [layers][experts] how many tokens chose each expert in all steps since load(), as load::PlanRequest::expert_usage;
  /// an empty list for layers without experts. REQUIRES: load() succeeded.
  std::vector<std::vector<double>> expert_usage() const;

  /// Where the pages of weights, KV cache and workspace, and the threads, are now. REQUIRES: load() succeeded.
  /// Errors: of run::measure_placement.
  Result<PlacementReport> measure_placement();

  /// Where the weights lie, one buffer per node; empty before load().
  const load::WeightMemory& weights() const { return weights_; }
  /// The workers, to measure the machine with them between steps. REQUIRES: not for a planned machine.
  numa::Team& team() { return *team_; }

 private:
  friend class Sequence;
  Engine(numa::Topology topology, EngineOptions options)
      : topology_(std::move(topology)), options_(std::move(options)) {}
  Result<void> check_length(const Sequence& sequence, int64_t more) const;
  Result<void> take_pages(Sequence& sequence, int64_t length, std::span<const StepRequest> step);
  Result<void> take_pages_of_memory(const load::LoadOptions& options);
  Result<void> open_kv_store();
  void store_pages(std::span<const StepRequest> requests);
  // Pages that memory has no room for (engine_cold.cc).
  void register_sequence(Sequence* sequence, Sequence* now);
  Result<void> plan_cold_pages(const numa::MemoryLimit& available, load::PlannedModel& planned);
  Result<void> check_disk_room() const;
  Result<void> make_room(std::span<const StepRequest> step);
  Result<void> evict_superblock(Sequence& sequence);
  Result<void> bring_back(std::span<const StepRequest> step);
  void begin_cold(std::span<const StepRequest> step);
  Result<void> end_cold(std::span<const StepRequest> step);
  void collect_counters();
  std::string describe_streaming() const;
  /// The part of the chosen experts that are not in memory, if all are equally likely.
  double expert_miss_rate() const;

  numa::Topology topology_;
  EngineOptions options_;
  std::optional<checkpoint::Checkpoint> checkpoint_;  // absent: synthetic
  std::optional<load::PackedFile> packed_;            // present: of a packed checkpoint
  load::PackedLayout packed_layout_;
  load::StreamPlan stream_plan_;
  std::optional<storage::Digest128> fingerprint_;
  int trained_experts_ = 0;  // per token, as config.json says
  int planned_experts_ = 0;  // per token, that memory is planned for
  model::GenerationDefaults generation_defaults_;
  kernels::Isa isa_{};
  kernels::Kernels kernels_{};
  int64_t context_tokens_ = 0;
  int kv_pages_ = 0;           // in memory
  int64_t planned_pages_ = 0;  // in memory and on disk
  Admission admission_;
  model::StepLimits limits_;
  numa::TeamLayout layout_;
  std::unique_ptr<numa::Team> team_;  // absent: a planned machine
  load::WeightMemory weights_;
  model::Placement placement_;
  std::unique_ptr<model::Model> model_;
  load::PlanRequest plan_request_;
  load::MemoryPlan plan_;
  std::optional<model::KvCache> kv_;
  std::unique_ptr<KvStore> kv_store_;        // after kv_, whose pages it writes until it ends; absent: none
  std::unique_ptr<ColdStream> cold_stream_;  // absent: memory has room for all pages
  std::vector<Sequence*> sequences_;         // all that live
  int64_t steps_ = 0;
  std::vector<TokenId> lost_tokens_;  // of the first sequence that lost some to a damaged page, in the last step
  int recomputing_ = 0;               // what was lost, and what was lost meanwhile
  std::optional<model::Workspace> workspace_;
  std::array<StepProfile, 2> profiles_;        // by StepKind
  StepKind counted_kind_ = StepKind::kDecode;  // of the steps in the workers' counters
  load::LoadStatistics load_statistics_;
  PageStatistics page_statistics_;
  std::unique_ptr<load::WeightStream> weight_stream_;  // absent: all weights are in memory
  // Of the running step; kept for their memory.
  model::Batch batch_;
  std::vector<StepLogits> step_logits_;                // [requests]
  std::vector<std::span<const float>> append_logits_;  // [rows]
};

}  // namespace cpuinfer::run
