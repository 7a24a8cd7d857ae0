// The operations of a transformer: what a model's forward pass is written in. Each is a phase of one forward step:
// every worker of the team calls it with the same arguments, does its share with the selected kernels, and meets the
// others at a barrier at its end. The only code that calls both numa and kernels.
//
// T = rows of the batch, H = hidden, D = head_dim. No op allocates or fails. Who computes an item never changes a bit.
#pragma once

#include <span>
#include <vector>

#include "engine/model/batch.h"
#include "engine/model/kv_cache.h"
#include "engine/model/weights.h"
#include "engine/model/workspace.h"
#include "kernels/registry.h"
#include "numa/team.h"

namespace cpuinfer::model {

/// One worker inside a step.
struct Lane {
  numa::Worker& worker;
  const kernels::Kernels& kernels;
  WorkerScratch& scratch;
};

/// residual[t] = float(embedding row of tokens[t]).  embedding: [vocab, H] packed as any matrix.
void embed(Lane& lane, std::span<const TokenId> tokens, const PackedMatrix& embedding, Rows<float> residual);

/// out[t] = bf16(rms_norm(x[t]) * weight), t < count. If `pick` is not null, row t is taken from x[pick[t]].
void rms_norm(Lane& lane, Rows<float> x, const int* pick, int count, const std::vector<float>& weight, float eps,
              Rows<bf16> out);

/// c[t] = a[t] * matrix^T for t < count (segments added in ascending order), then + bias if there is one.
/// a: [count, terms in segments], c: [count, outputs padded to 16].
void linear(Lane& lane, Rows<bf16> a, int count, const PackedMatrix& matrix, const std::vector<float>& bias,
            Rows<float> c);

/// residual[t] = residual[t] + a[t] * matrix^T, segments added in ascending order, then the bias.
void linear_add(Lane& lane, Rows<bf16> a, int count, const PackedMatrix& matrix, const std::vector<float>& bias,
                Rows<float> residual);

/// cos and sin rows [T, D/2] of the batch's positions.
void rope_tables(Lane& lane, const Batch& batch, Rows<float> cos, Rows<float> sin);

/// The arguments of attention that belong to one layer.
struct AttentionWeights {
  const std::vector<float>& query_norm;  ///< [D]
  const std::vector<float>& key_norm;    ///< [D]
  float rms_eps;
};

/// Splits qkv rows ([kv_heads][group q heads | k | v][D]) into heads, norms and rotates q and k, writes q to `queries`
/// and k, v to the pages of the cache.
void split_heads(Lane& lane, const ModelConfig& config, const Batch& batch, int layer, Rows<float> qkv,
                 const AttentionWeights& weights, Rows<float> cos, Rows<float> sin, Rows<bf16> queries, KvCache& kv);

/// Rows of one sequence whose queries are answered together, for one range of superblocks.
struct AttentionItem {
  int sequence = 0;
  int first_row = 0;  ///< in the batch
  int rows = 0;
  int superblock = -1;  ///< -1: all of them, in order; otherwise only this one, into partials
  int64_t partial = 0;  ///< first row of partials for kv head 0 (superblock >= 0)
};
/// Superblocks of one item's rows to be merged.
struct AttentionMerge {
  int first_row = 0, rows = 0, superblocks = 0;
  int64_t partial = 0;
};
/// How a batch's attention is cut into items: the same for all layers. Made once per step by make_attention_plan.
struct AttentionPlan {
  std::vector<AttentionItem> items;
  std::vector<AttentionMerge> merges;
};
void make_attention_plan(const ModelConfig& config, const Batch& batch, AttentionPlan& plan);

/// Causal grouped-query attention over the paged cache, exact. Leaves of 256 tokens and superblocks of 1024 at absolute
/// positions are merged in a fixed tree (docs/numerics.md), so the result depends on nothing but the sequence.
/// workspace: reads queries, writes attention.
void attention(Lane& lane, const ModelConfig& config, const Batch& batch, const AttentionPlan& plan, int layer,
               const KvCache& kv, Workspace& workspace);

/// hidden[t] = bf16(silu(gate) * up) from gate_up [T, 2I interleaved by 8].
void silu_mul(Lane& lane, Rows<float> gate_up, int count, int intermediate, Rows<bf16> hidden);

/// Picks experts_per_token experts for each row from router_logits and sorts the rows by expert into workspace.slots.
void route(Lane& lane, const ModelConfig& config, int count, Workspace& workspace);

/// An expert's matrices: gate_up [2I interleaved by 8, H] and down [H, I].
struct Expert {
  PackedMatrix gate_up;
  PackedMatrix down;
};

/// intermediate[slot] = bf16(silu(gate) * up) of normed[slot's row] by the slot's expert.
void experts_gate_up(Lane& lane, const ModelConfig& config, std::span<const Expert> experts, const ExpertSlots& slots,
                     Rows<bf16> normed, Rows<bf16> intermediate);

/// residual[row] = fma(weight, down(intermediate[slot]), residual[row]), experts in ascending order.
void experts_down(Lane& lane, std::span<const Expert> experts, const ExpertSlots& slots, Rows<bf16> intermediate,
                  Rows<float> residual);

}  // namespace cpuinfer::model
