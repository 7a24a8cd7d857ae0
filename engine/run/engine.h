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
};

inline constexpr int64_t kDefaultContextTokens = 32768;

class Engine;

/// The tokens of one request in the KV cache. Move-only; gives its pages back when it ends. Used by one thread, and not
/// after its engine.
class Sequence {
 public:
  Sequence(Sequence&& other) noexcept;
  Sequence& operator=(Sequence&& other) noexcept;
  ~Sequence();

  /// Tokens whose keys and values are in the cache.
  std::span<const TokenId> tokens() const { return tokens_; }
  int64_t length() const { return static_cast<int64_t>(tokens_.size()); }
  /// Forgets everything from position `length` on. REQUIRES: length <= length().
  void truncate(int64_t length);

 private:
  friend class Engine;
  Sequence(Engine& engine, model::RopeFrequencies rope) : engine_(&engine), rope_(std::move(rope)) {}
  void release_pages(size_t keep);
  /// Empties the cache from position length() on.
  void clear_beyond_end();

  Engine* engine_;
  model::RopeFrequencies rope_;
  std::vector<TokenId> tokens_;
  std::vector<int> pages_;
};

/// Which rows of an append() want logits.
enum class LogitRows { kNone, kLast, kAll };

struct AppendOptions {
  LogitRows logit_rows = LogitRows::kLast;
  /// Called after each step with the rows that have logits: the number of the first of them among the appended tokens,
  /// and logits [rows][vocab] row by row. Views die with the call.
  std::function<void(int64_t first, std::span<const std::span<const float>> logits)> logits;
  /// Called after each step with tokens done of those to append.
  std::function<void(int64_t done, int64_t total)> progress;
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

/// Owns everything: topology, team, kernels, model, weights, KV cache. Lives behind a pointer; used by one thread.
class Engine {
 public:
  /// Opens the directory (or takes the synthetic config), checks config and tensors, chooses kernels and plans memory.
  /// Reads no weights. For a planned machine it makes no thread and times no kernel.
  /// Errors: of each of these parts; a plan that does not fit is not one yet (see plan()).
  static Result<std::unique_ptr<Engine>> prepare(const EngineOptions& options);

  /// Allocates all memory and loads or makes the weights. Errors: kDoesNotFit with the plan's table if it does not fit,
  /// kUsage for a planned machine.
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

  /// planned_tokens: the length that the sequence may reach; it fixes the rotary frequencies of `dynamic` scaling for
  /// the life of the sequence. kUsage if it exceeds the context.
  Result<Sequence> start_sequence(int64_t planned_tokens);

  /// The most that one step() may hold.
  const model::StepLimits& limits() const { return limits_; }

  /// One step of any mix of decode rows and prefill chunks. What a request gets does not depend on the others, not by
  /// a bit. Returns the logits of each request, in order. Allocates nothing as long as the sequences stay within their
  /// planned tokens.
  /// REQUIRES: load() succeeded; 1 to limits().sequences requests for different sequences, their tokens and rows of
  /// logits within limits(); token ids are below config().vocab.
  /// Errors: kUsage (longer than the context), kDoesNotFit (no free KV page); nothing was computed then. Those of
  /// model::Model::forward: no sequence has got a token then, and the step may be tried again.
  Result<std::span<const StepLogits>> step(std::span<const StepRequest> requests);

  /// Computes tokens after those already in the sequence, in steps of at most chunk_tokens.
  /// REQUIRES: load() succeeded; token ids are below config().vocab.
  /// Errors: kUsage (longer than the context), kDoesNotFit (no free KV page), kInterrupted, those of
  /// model::Model::forward; the steps before the one that failed stay done.
  Result<void> append(Sequence& sequence, std::span<const TokenId> tokens, const AppendOptions& options);

  /// For benchmarks: lengthens the sequence to `length` tokens whose keys and values are random numbers of a plausible
  /// size instead of computed ones, so that a depth costs no prefill. Every worker fills its share, with GB/s; the same
  /// for any number of threads. REQUIRES: load() succeeded; length >= sequence.length(), which is a whole number of
  /// pages. Errors: kUsage (longer than the context), kDoesNotFit (no free KV page).
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
  Result<void> take_pages(Sequence& sequence, int64_t length);
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
  int kv_pages_ = 0;
  model::StepLimits limits_;
  numa::TeamLayout layout_;
  std::unique_ptr<numa::Team> team_;  // absent: a planned machine
  load::WeightMemory weights_;
  model::Placement placement_;
  std::unique_ptr<model::Model> model_;
  load::PlanRequest plan_request_;
  load::MemoryPlan plan_;
  std::optional<model::KvCache> kv_;
  std::optional<model::Workspace> workspace_;
  std::array<StepProfile, 2> profiles_;        // by StepKind
  StepKind counted_kind_ = StepKind::kDecode;  // of the steps in the workers' counters
  load::LoadStatistics load_statistics_;
  std::unique_ptr<load::WeightStream> weight_stream_;  // absent: all weights are in memory
  // Of the running step; kept for their memory.
  model::Batch batch_;
  std::vector<StepLogits> step_logits_;                // [requests]
  std::vector<std::span<const float>> append_logits_;  // [rows]
};

}  // namespace cpuinfer::run
