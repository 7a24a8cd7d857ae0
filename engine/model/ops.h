// The operations of a transformer: what a model's forward pass is written in. Every worker of the team calls each with
// the same arguments and does its share with the selected kernels. The only code that calls both numa and kernels.
//
// An op does not wait for others to finish their shares: the forward pass says where workers meet (Lane::meet), which
// is before the first op that reads what others wrote. With at most kFewRows rows, small things are computed by every
// worker for itself instead, so that a layer of decode has six meetings (seven beyond one superblock of context). Ops
// that need a meeting of their own with more rows say so.
//
// T = rows of the batch, H = hidden, D = head_dim. No op allocates or fails. Who computes an item never changes a bit.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "engine/model/batch.h"
#include "engine/model/kv_cache.h"
#include "engine/model/weight_source.h"
#include "engine/model/weights.h"
#include "engine/model/workspace.h"
#include "kernels/registry.h"
#include "numa/team.h"

namespace cpuinfer::model {

/// One worker inside a step, and the account of what it spends on each phase.
class Lane {
 public:
  Lane(numa::Worker& a_worker, const kernels::Kernels& a_kernels, Workspace& workspace);
  /// Closes the last phase.
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  /// What follows belongs to `phase`.
  void begin(Phase phase);
  /// Returns when all workers are here: what each wrote before, all may read now.
  void meet();
  /// The same for the workers of this node.
  void meet_in_node();
  /// Notes work of the current phase: see PhaseCounters.
  void count(int64_t bytes, int64_t flops);
  /// WeightSource::await_part and next_experts, whose time is waiting.
  bool await_part(WeightSource& source, int layer, LayerPart part);
  std::optional<numa::Range> next_experts(WeightSource& source, int layer, const ExpertSlots& slots,
                                          numa::Range previous);

  numa::Worker& worker;
  const kernels::Kernels& kernels;
  NodeActivations& node;
  WorkerScratch& scratch;

 private:
  template <typename Wait>
  void wait(Wait&& wait);
  /// The clock; it stands still while scratch.counting is off.
  int64_t now_ns() const;

  Phase phase_ = Phase::kEmbedding;
  int64_t since_ns_;  ///< what came before is in the counters
};

/// Asks for the first cache lines of this worker's share of `matrix`: for the moment before a meeting, so that memory
/// is at work while workers wait.
void prefetch(const Lane& lane, const PackedMatrix& matrix);

/// residual[t] = float(embedding row of tokens[t]).  embedding: [vocab, H] packed as any matrix.
void embed(Lane& lane, std::span<const TokenId> tokens, const PackedMatrix& embedding, Rows<float> residual);

/// bf16(rms_norm(x[t]) * weight), t < count. If `pick` is not null, row t is taken from x[pick[t]]. Up to kFewRows rows
/// are computed by every worker for itself; more are shared out in the node, written to `out`, which is the node's own,
/// and met for there.
Rows<bf16> rms_norm(Lane& lane, Rows<float> x, const int* pick, int count, const ReplicatedVector& weight, float eps,
                    Rows<bf16> out);

/// Rows that workers of all nodes wrote, as this node reads them: up to kFewRows rows, or if there is one node, where
/// they are; more are copied to `own` once, so that not every worker gets them from another node's memory. They have
/// one stride. Meets the others of the node after copying.
Rows<bf16> fetch(Lane& lane, Rows<bf16> rows, int64_t count, bool few, Rows<bf16> own);

/// c[t] = a[t] * matrix^T for t < count (segments added in ascending order), then + bias if there is one.
/// a: [count, terms in segments], c: [count, outputs padded to 16].
void linear(Lane& lane, Rows<bf16> a, int count, const PackedMatrix& matrix, const ReplicatedVector& bias,
            Rows<float> c);

/// residual[t] = residual[t] + a[t] * matrix^T, segments added in ascending order, then the bias.
void linear_add(Lane& lane, Rows<bf16> a, int count, const PackedMatrix& matrix, const ReplicatedVector& bias,
                Rows<float> residual);

/// cos and sin rows [T, D/2] of the batch's positions.
void rope_tables(Lane& lane, const Batch& batch, Rows<float> cos, Rows<float> sin);

/// The arguments of attention that belong to one layer.
struct AttentionWeights {
  const ReplicatedVector& query_norm;  ///< [D]
  const ReplicatedVector& key_norm;    ///< [D]
  float rms_eps;
};

/// Rows of one sequence whose queries of one kv head are answered together, for one range of superblocks.
struct AttentionItem {
  int sequence = 0;
  int kv_head = 0;
  int first_row = 0;  ///< in the batch
  int rows = 0;
  int first_superblock = 0;
  int end_superblock = 0;  ///< or where the rows' own tokens end, if that is before
  int64_t partial =
      -1;               ///< first row of its partials, [rows of the item]; -1: it begins and ends all that its rows see
  bool begins = true;   ///< false: what its partials hold is gone on with
  bool ends = true;     ///< false: the result goes to its partials
  int stage_page = -1;  ///< of a cold range, in its round: where in the round's pages its first page is
};
/// Superblocks of one item's rows to be merged.
struct AttentionMerge {
  int first_row = 0, rows = 0, superblocks = 0;
  int64_t partial = 0;
};
/// Items of each node, those of node 0 first.
struct NodeItems {
  std::vector<AttentionItem> items;
  std::vector<int64_t> first_item;  ///< [nodes + 1] those of node n are first_item[n] .. first_item[n+1]-1
};
/// How a batch's attention is cut into items: the same for all layers. Made once per step by make_attention_plan. Items
/// are done on the node where their keys and values lie.
///
/// Sequences with up to kFewRows rows are cut by superblocks: their items norm and rotate the queries that they need
/// and write the keys and values of their own superblock themselves. Longer ones are cut by rows, after all their keys
/// and values have been written. Superblocks that are cold come first, in rounds.
struct AttentionPlan {
  std::vector<NodeItems> cold_rounds;
  NodeItems resident;
  std::vector<AttentionMerge> merges;
  bool any_long = false;  ///< some sequence has more than kFewRows rows
};
/// Room for every batch within `limits`, so that steps allocate nothing (but for cold rounds).
void reserve_attention_plan(const ModelConfig& config, const StepLimits& limits, int nodes, AttentionPlan& plan);
void make_attention_plan(const ModelConfig& config, const Batch& batch, const KvCache& kv, AttentionPlan& plan);

/// Causal grouped-query attention over the paged cache, exact. qkv rows ([kv_heads][group q heads | k | v][D]) are
/// split into heads, q and k are normed and rotated, k and v appended to the cache. Leaves of 256 tokens and
/// superblocks of 1024 at absolute positions are merged in a fixed tree (docs/numerics.md), so the result depends on
/// nothing but the sequence. Meets the others inside (those of the node where a kv head lies on one node): once if
/// there are long sequences, once if superblocks are to be merged; and all of them twice in each cold round.
/// workspace: reads qkv, cos, sin; writes queries,
/// attention.
void attention(Lane& lane, const ModelConfig& config, const Batch& batch, const AttentionPlan& plan, int layer,
               const AttentionWeights& weights, KvCache& kv, Workspace& workspace);

/// hidden[t] = bf16(silu(gate) * up) from gate_up [T, 2I interleaved by 8].
void silu_mul(Lane& lane, Rows<float> gate_up, int count, int intermediate, Rows<bf16> hidden);

/// Picks experts_per_token experts for each row from the node's router_logits and sorts the rows by expert, on every
/// node the same. Up to kFewRows rows every worker for itself; more with two meetings in the node. One worker of the
/// team adds to counts [experts] how many rows chose each.
ExpertSlots route(Lane& lane, const ModelConfig& config, int count, int64_t* counts);

/// An expert's matrices: gate_up [2I interleaved by 8, H] and down [H, I]. Either every expert of a layer is sliced
/// over the nodes alike, or each lies on one node.
struct Expert {
  PackedMatrix gate_up;
  PackedMatrix down;
};

/// intermediate[slot] = bf16(silu(gate) * up) of normed[slot's row] by the slot's expert. Of whole experts, a node
/// computes the slots of its own.
void experts_gate_up(Lane& lane, const ModelConfig& config, std::span<const Expert> experts, const ExpertSlots& slots,
                     Rows<bf16> normed, Rows<bf16> intermediate);

/// residual[row] = fma(weight, down(intermediate[slot]), residual[row]), experts in ascending order. For sliced
/// experts.
void experts_down(Lane& lane, std::span<const Expert> experts, const ExpertSlots& slots, Rows<bf16> intermediate,
                  Rows<float> residual);

/// The same for whole experts, whose products come from different nodes: they are written to `outputs` [slots, H], met
/// for, and then added.
void whole_experts_down(Lane& lane, std::span<const Expert> experts, const ExpertSlots& slots, Rows<bf16> intermediate,
                        Rows<float> outputs, Rows<float> residual);

}  // namespace cpuinfer::model
