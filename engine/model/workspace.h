// The activations of one forward step and the scratch of each worker, allocated once, each where it is used.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "engine/model/config.h"
#include "engine/model/kv_cache.h"
#include "engine/model/phases.h"
#include "engine/model/placement.h"
#include "numa/memory.h"
#include "numa/topology.h"

namespace cpuinfer::model {

/// Rows of activations: a view that owns nothing. Rows are 64-byte aligned, their stride a multiple of 64 bytes;
/// elements beyond the logical width are zero or scratch, as the op that writes them says.
template <typename T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;  ///< elements
  T* operator[](int64_t row) const { return data + row * stride; }
};

/// Rows of the batch sorted by the expert that they go to (ascending), then by row: the "slots" of a MoE block.
struct ExpertSlots {
  int32_t* first = nullptr;  ///< [experts + 1]: slots of expert e are first[e] .. first[e+1]-1
  int32_t* rows = nullptr;   ///< [slots] row of the batch
  float* weights = nullptr;  ///< [slots] routing weight
};

/// The experts of each row.
struct ChosenExperts {
  Rows<int32_t> ids;    ///< [rows, K] ascending
  Rows<float> weights;  ///< [rows, K]
};

/// A running attention state of some rows (kernels::AttentionPartial for each).
struct PartialRows {
  float* max = nullptr;  ///< [rows]
  float* sum = nullptr;  ///< [rows]
  Rows<float> out;       ///< [rows, head_dim padded to 16]
};

/// What the workers of a node have for themselves: copies that each node computes or fetches once, rather than every
/// worker from another node's memory.
struct NodeActivations {
  Rows<bf16> normed;          ///< [rows, hidden padded to 32]
  Rows<bf16> final_normed;    ///< [logit rows, hidden padded to 32]
  Rows<float> router_logits;  ///< [rows, experts padded to 16]
  ChosenExperts chosen;       ///< of all rows
  ExpertSlots slots;
  Rows<bf16> attention;          ///< as Workspace::attention; the same rows if there is one node
  bf16* intermediate = nullptr;  ///< as Workspace::intermediate; the same memory if there is one node
};

/// What one worker needs for itself, on its node.
struct alignas(64) WorkerScratch {
  Rows<float> block;                ///< [kRowBlock, kBlockOutputs] a block of a matrix product
  Rows<float> scores;               ///< [attention rows, kLeafTokens]
  Rows<bf16> probs;                 ///< [attention rows, kLeafTokens]
  PartialRows leaf;                 ///< [attention rows]
  PartialRows superblock;           ///< [attention rows]
  PartialRows total;                ///< [attention rows]
  int32_t* row_numbers = nullptr;   ///< [attention rows]
  Rows<bf16> queries;               ///< [kFewRows * group, head_dim padded to 32]
  bf16* head = nullptr;             ///< [head_dim padded to 32]
  bf16* embedding = nullptr;        ///< [hidden]
  Rows<bf16> normed;                ///< [kFewRows, hidden padded to 32]
  float* router = nullptr;          ///< [experts]
  ChosenExperts chosen;             ///< of kFewRows rows
  ExpertSlots slots;                ///< of kFewRows rows
  int32_t* used_experts = nullptr;  ///< [experts]
  StepCounters counters{};          ///< of all steps since they were last set to zero
  bool counting = true;             ///< off only to measure what counting costs
};

/// The most that one step may hold.
struct StepLimits {
  int rows = 1;  ///< tokens in a batch
  int logit_rows = 1;
  int sequences = 1;
  int64_t context_tokens = 1;  ///< of all sequences together, in the KV cache or cold
  bool cold_pages = false;     ///< sequences may have cold superblocks
};

/// Rows of a block of a matrix product, and of queries x heads in attention: a compromise between reuse of weights and
/// the size of the activations that stay in the second-level cache.
inline constexpr int kRowBlock = 128;
/// Outputs of a block of a matrix product.
inline constexpr int kBlockOutputs = 256;
/// Few rows: of a step, so that every worker computes small things for itself rather than wait for another; of a
/// sequence, so that its superblocks are computed in parallel and merged afterwards.
inline constexpr int kFewRows = 4;

/// All memory of a forward step. What all workers share lies in slices on all nodes; the rest on the node of those who
/// use it. Not thread-safe as a whole; ops say who writes what.
class Workspace {
 public:
  /// Bytes on each node for a model, limits and the node of each worker: exactly what create() allocates. Pure.
  static std::vector<int64_t> node_bytes(const ModelConfig& config, const StepLimits& limits,
                                         const Placement& placement, std::span<const int> worker_nodes);
  static Result<Workspace> create(const ModelConfig& config, const StepLimits& limits, const Placement& placement,
                                  std::span<const int> worker_nodes, const numa::Topology& topology);

  StepLimits limits;
  Rows<float> residual;          ///< [rows, hidden padded to 16] the residual stream
  Rows<float> qkv;               ///< [rows, (heads + 2 kv_heads) * head_dim padded to 16]
  Rows<bf16> queries;            ///< [rows * heads, head_dim padded to 32]
  Rows<bf16> attention;          ///< [rows, kv_heads * (group * head_dim padded to 32)]
  Rows<float> gate_up;           ///< [rows, 2 * intermediate padded to 16] of dense layers
  bf16* intermediate = nullptr;  ///< [slots or rows, intermediate padded to 32], not of whole experts
  Rows<float> expert_outputs;    ///< [slots, hidden padded to 16] of whole experts only
  Rows<float> cos, sin;          ///< [rows, head_dim / 2]
  Rows<float> partial_out;       ///< [partials, head_dim padded to 16] of superblocks computed in parallel, and of
                                 ///< rows whose superblocks come in rounds
  float* partial_max = nullptr;
  float* partial_sum = nullptr;
  Rows<float> logits;                ///< [logit rows, vocab padded to 16]
  int64_t* expert_counts = nullptr;  ///< [layers, experts] rows that chose each expert, of all steps
  std::vector<NodeActivations> nodes;
  std::vector<WorkerScratch> workers;

  /// All of it: what is shared first, then a buffer per node.
  std::span<const numa::NodeBuffer> memory() const { return memory_; }

 private:
  class Layout;
  /// The shared part, and then that of each node.
  void lay_out_shared(const ModelConfig& config, const Placement& placement, Layout& layout);
  void lay_out_node(const ModelConfig& config, const Placement& placement, int node, std::span<const int> worker_nodes,
                    Layout& layout);

  std::vector<numa::NodeBuffer> memory_;
};

}  // namespace cpuinfer::model
