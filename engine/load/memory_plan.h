// MemoryPlan: every byte the engine will hold, by purpose and node, and whether it fits: before any weight is read.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "engine/load/stream_plan.h"
#include "engine/model/model.h"
#include "numa/memory_limit.h"
#include "numa/topology.h"

namespace cpuinfer::load {

/// What is to be held.
struct PlanRequest {
  model::StepLimits limits;
  int kv_pages = 0;                    ///< of all sequences together, in memory
  int stage_pages = 0;                 ///< of one layer, that pages on disk are read into
  int sequences = 1;                   ///< that share them; advice names a context for each
  int64_t context_limit = 0;           ///< the most tokens that advice may name
  std::vector<int> worker_nodes = {};  ///< [workers] the node of each; every node has one
  bool stream_weights = false;         ///< read from disk during steps what does not fit; slices only
  bool whole_experts = false;          ///< model::Placement::expert_nodes instead of slices of every expert
  /// [layers][experts] how often each expert is chosen, to balance whole experts by; empty: all alike.
  std::vector<std::vector<double>> expert_usage = {};

  int nodes() const;
};

/// One purpose: bytes on each node.
struct PlanLine {
  std::string purpose;  ///< "experts", "KV cache", ...
  std::vector<int64_t> node_bytes;
  int64_t total() const;
};

/// Pure data, made by plan_model.
struct MemoryPlan {
  std::vector<PlanLine> lines;
  std::vector<int> node_ids;           ///< how people know each node: the system's number, or of simulated ones a count
  std::vector<int64_t> node_capacity;  ///< free bytes of each node
  std::vector<int64_t>
      node_reserved;            ///< of its weights in reserved pages of 1 GiB, which are not part of what is free
  numa::MemoryLimit available;  ///< for the process as a whole
  int64_t kv_bytes_per_token = 0;
  int64_t context_tokens = 0;          ///< that the KV cache holds, all sequences together
  int64_t largest_context = 0;         ///< the longest context that would fit, at most the request's limit; 0: none
  std::string remedy;                  ///< what would make it fit, if not a shorter context; empty: nothing known
  bool streaming_fits = false;         ///< no context would fit, but PlanRequest::stream_weights
  std::vector<std::string> shortages;  ///< one sentence for each limit that is exceeded; empty: it fits

  bool fits() const { return shortages.empty(); }
  int64_t total() const;
  int64_t node_total(int node) const;
  /// The table for people, and its sentences. No trailing newline.
  std::string table() const;
  Json json() const;
  /// What to do about a plan that does not fit: the flag that would make it fit, if there is one.
  std::string advice() const;
  /// Nothing if it fits; otherwise kDoesNotFit with the table and what to do: `other_advice`, or advice().
  Result<void> check(std::string_view other_advice = {}) const;
};

/// Memory kept free for the program itself: code, tokenizer, thread stacks, what loading notes down.
inline constexpr int64_t kReserveBytes = 256_MiB;
/// What requests hold beside the KV cache, for each of its tokens: ids in the request, the sequence and the answer, and
/// their text. A token is 4 to 5 bytes of text on average; there is room for several times as much.
inline constexpr int64_t kRequestTokenBytes = 64;
/// The same for each sequence and word of the vocabulary: candidates of the sampler and their probabilities.
inline constexpr int64_t kRequestWordBytes = 32;

/// A model without memory, and where it will go.
struct PlannedModel {
  model::Placement placement;
  std::unique_ptr<model::Model> model;
  MemoryPlan plan;
  StreamPlan stream = {};  ///< what is not in memory; nothing unless PlanRequest::stream_weights
};

/// Chooses a placement and plans with it. What is sliced is dealt in proportion to the workers of the nodes, so that
/// all are done at the same time; a node that has not the memory for its slices gets what fits, and the others the
/// rest. With stream_weights, memory that is free beside all else goes to attention, dense MLPs and experts, in this
/// order; a sixteenth of what is available stays free unless even the least needs it. Asks the model for its list of
/// weights and reads nothing. Pure. Errors: of create_model; a plan that does not fit is none.
Result<PlannedModel> plan_model(const model::ModelConfig& config, const PlanRequest& request,
                                const numa::Topology& topology, const numa::MemoryLimit& available);

}  // namespace cpuinfer::load
