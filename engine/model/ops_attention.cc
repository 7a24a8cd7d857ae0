// Attention over the paged cache. The unit of arithmetic is a leaf: the 256 tokens of a page at absolute positions
// [256 j, 256 j + 256). Its scores, maximum, sum and output depend on the query and those tokens alone, not on what
// came before. Leaves are merged left to right inside superblocks of 1,024 tokens, superblocks left to right: a fixed
// tree, so any cut of the work over workers, chunks and steps gives the same bits (docs/numerics.md; the blockwise
// softmax is that of Milakov & Gimelshein 2018 and FlashAttention, Dao et al. 2022).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/model/ops.h"
#include "kernels/pack.h"

namespace cpuinfer::model {
namespace {

constexpr int kLeavesPerSuperblock = kSuperblockTokens / kernels::kLeafTokens;

int superblocks_for(int64_t tokens) { return static_cast<int>(ceil_div(tokens, int64_t{kSuperblockTokens})); }

// Some query rows of one kv head: rows are (token, query head of the group), token by token.
struct QueryRows {
  const BatchSequence& sequence;
  int64_t first_position;  // of the first token
  int tokens;
  int group;
  const int32_t* row_numbers;  // [tokens * group] rows of workspace.queries

  int rows() const { return tokens * group; }
  int64_t position(int row) const { return first_position + row / group; }
};

void clear(const PartialRows& partial, int rows) {
  std::fill_n(partial.sum, rows, 0.0f);
  std::fill_n(partial.max, rows, 0.0f);
}

kernels::AttentionPartial at(const PartialRows& partial, int64_t row) {
  return {partial.max + row, partial.sum + row, partial.out[row]};
}

// Computes one leaf for all rows that see any of its tokens and merges it into scratch.superblock.
void add_leaf(Lane& lane, const QueryRows& query, int64_t leaf, Rows<bf16> queries, int layer, int kv_head,
              const KvCache& kv, int head_dim, float scale) {
  WorkerScratch& scratch = lane.scratch;
  const int64_t leaf_start = leaf * kernels::kLeafTokens;
  // Rows are in ascending order of position: those that see the leaf are the last ones.
  const int first = static_cast<int>(std::max<int64_t>(0, leaf_start - query.first_position)) * query.group;
  const int rows = query.rows() - first;
  if (rows <= 0) return;
  const auto visible = [&](int row) {
    return static_cast<int>(std::min<int64_t>(kernels::kLeafTokens, query.position(row) - leaf_start + 1));
  };
  const int widest = visible(query.rows() - 1);
  const int page = query.sequence.pages[leaf];
  const int head_dim_padded = kv.head_dim_padded();
  const int value_terms = round_up(widest, kernels::kTileTerms);

  const kernels::Gemm scores = {
      .m = rows,
      .n = round_up(widest, kernels::kUnitOutputs),
      .k = head_dim_padded,
      .a = queries.data,
      .a_stride = queries.stride,
      .a_rows = query.row_numbers + first,
      .w = kv.keys(layer, kv_head, page),
      .w_unit_stride = kernels::unit_elements(head_dim_padded),
      .c = scratch.scores.data,
      .c_stride = scratch.scores.stride,
      .accumulate = false,
  };
  lane.kernels.gemm(rows).run(scores);
  for (int row = 0; row < rows; ++row) {
    lane.kernels.elementwise->softmax_leaf({.scores = scratch.scores[row],
                                            .valid = visible(first + row),
                                            .scale = scale,
                                            .probs = scratch.probs[row],
                                            .probs_count = value_terms,
                                            .max = scratch.leaf.max + row,
                                            .sum = scratch.leaf.sum + row});
    // The product is added to +0: a chain of values that all round to zero may end in -0 or +0 depending on how many
    // masked tokens it ran over, and the sum forgets which.
    std::fill_n(scratch.leaf.out[row], round_up(head_dim, kernels::kUnitOutputs), 0.0f);
  }
  const kernels::Gemm output = {
      .m = rows,
      .n = round_up(head_dim, kernels::kUnitOutputs),
      .k = value_terms,
      .a = scratch.probs.data,
      .a_stride = scratch.probs.stride,
      .w = kv.values(layer, kv_head, page),
      .w_unit_stride = kernels::unit_elements(kernels::kLeafTokens),
      .c = scratch.leaf.out.data,
      .c_stride = scratch.leaf.out.stride,
      .accumulate = true,
  };
  lane.kernels.gemm(rows).run(output);
  for (int row = 0; row < rows; ++row) {
    lane.kernels.elementwise->merge_partial({.dst = at(scratch.superblock, first + row),
                                             .src = at(scratch.leaf, row),
                                             .n = round_up(head_dim, kernels::kUnitOutputs)});
  }
}

}  // namespace

void rope_tables(Lane& lane, const Batch& batch, Rows<float> cos, Rows<float> sin) {
  const numa::Range share = lane.worker.share(batch.rows());
  for (const BatchSequence& sequence : batch.sequences) {
    const int64_t begin = std::max<int64_t>(share.begin, sequence.first_row);
    const int64_t end = std::min<int64_t>(share.end, sequence.first_row + sequence.rows);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t position = sequence.start_position + (row - sequence.first_row);
      rope_rows(*sequence.rope, {&position, 1}, cos[row], sin[row]);
    }
  }
  lane.worker.barrier();
}

void split_heads(Lane& lane, const ModelConfig& config, const Batch& batch, int layer, Rows<float> qkv,
                 const AttentionWeights& weights, Rows<float> cos, Rows<float> sin, Rows<bf16> queries, KvCache& kv) {
  const int group = config.heads / config.kv_heads;
  const int head_dim = config.head_dim;
  const int padded = kv.head_dim_padded();
  bf16* const head = lane.scratch.head;
  // Item = (kv head, row), kv head outermost, so that few pages are written by two workers.
  const numa::Range share = lane.worker.share(int64_t{config.kv_heads} * batch.rows());
  for (const BatchSequence& sequence : batch.sequences) {
    for (int kv_head = 0; kv_head < config.kv_heads; ++kv_head) {
      const int64_t base = int64_t{kv_head} * batch.rows();
      const int64_t begin = std::max<int64_t>(share.begin - base, sequence.first_row);
      const int64_t end = std::min<int64_t>(share.end - base, sequence.first_row + sequence.rows);
      for (int64_t row = begin; row < end; ++row) {
        const float* const q = qkv[row] + int64_t{kv_head} * (group + 2) * head_dim;
        const float* const k = q + int64_t{group} * head_dim;
        const float* const v = k + head_dim;
        kernels::NormRope rotate = {.x = q,
                                    .weight = weights.query_norm.data(),
                                    .cos = cos[row],
                                    .sin = sin[row],
                                    .n = head_dim,
                                    .eps = weights.rms_eps,
                                    .out = nullptr,
                                    .out_count = padded};
        for (int g = 0; g < group; ++g) {
          rotate.x = q + int64_t{g} * head_dim;
          rotate.out = queries[row * config.heads + kv_head * group + g];
          lane.kernels.elementwise->norm_rope(rotate);
        }
        const int64_t position = sequence.start_position + (row - sequence.first_row);
        const int page = sequence.pages[position / kernels::kLeafTokens];
        const int slot = static_cast<int>(position % kernels::kLeafTokens);
        rotate.x = k;
        rotate.weight = weights.key_norm.data();
        rotate.out = head;
        lane.kernels.elementwise->norm_rope(rotate);
        kernels::store_key(kv.keys(layer, kv_head, page), slot, head, padded);
        for (int i = 0; i < padded; ++i) head[i] = i < head_dim ? to_bf16(v[i]) : bf16{};
        kernels::store_value(kv.values(layer, kv_head, page), slot, head, padded);
      }
    }
  }
  lane.worker.barrier();
}

void make_attention_plan(const ModelConfig& config, const Batch& batch, AttentionPlan& plan) {
  plan.items.clear();
  plan.merges.clear();
  const int group = config.heads / config.kv_heads;
  const int rows_per_item = std::max(1, kRowBlock / group);
  int64_t partial = 0;
  for (int s = 0; s < static_cast<int>(batch.sequences.size()); ++s) {
    const BatchSequence& sequence = batch.sequences[s];
    const int superblocks = superblocks_for(sequence.start_position + sequence.rows);
    if (sequence.rows <= kSplitRows && superblocks > 1) {
      plan.merges.push_back({sequence.first_row, sequence.rows, superblocks, partial});
      for (int superblock = 0; superblock < superblocks; ++superblock) {
        plan.items.push_back({s, sequence.first_row, sequence.rows, superblock, partial});
        partial += int64_t{sequence.rows} * config.heads;
      }
      continue;
    }
    for (int row = 0; row < sequence.rows; row += rows_per_item)
      plan.items.push_back({s, sequence.first_row + row, std::min(rows_per_item, sequence.rows - row), -1, 0});
  }
}

void attention(Lane& lane, const ModelConfig& config, const Batch& batch, const AttentionPlan& plan, int layer,
               const KvCache& kv, Workspace& workspace) {
  WorkerScratch& scratch = lane.scratch;
  const int group = config.heads / config.kv_heads;
  const int head_dim = config.head_dim;
  const int padded_outputs = round_up(head_dim, kernels::kUnitOutputs);
  const int segment = round_up(group * head_dim, kernels::kTileTerms);
  const float scale =
      static_cast<float>(static_cast<double>(kernels::kLog2e) / std::sqrt(static_cast<double>(head_dim)));
  const PartialRows partials = {workspace.partial_max, workspace.partial_sum, workspace.partial_out};

  const auto finish = [&](int row, int kv_head, int g, const kernels::AttentionPartial& partial) {
    lane.kernels.elementwise->finish_attention(
        {.x = partial.out,
         .sum = *partial.sum,
         .n = head_dim,
         .out = workspace.attention[row] + int64_t{kv_head} * segment + int64_t{g} * head_dim});
  };

  // Items in turn: neighbours have like cost, so dealing them out one by one keeps the workers even.
  const int64_t items = static_cast<int64_t>(plan.items.size()) * config.kv_heads;
  for (int64_t index = lane.worker.rank; index < items; index += lane.worker.count) {
    const AttentionItem& item = plan.items[index / config.kv_heads];
    const int kv_head = static_cast<int>(index % config.kv_heads);
    const BatchSequence& sequence = batch.sequences[item.sequence];
    const QueryRows query = {.sequence = sequence,
                             .first_position = sequence.start_position + (item.first_row - sequence.first_row),
                             .tokens = item.rows,
                             .group = group,
                             .row_numbers = scratch.row_numbers};
    for (int row = 0; row < query.rows(); ++row)
      scratch.row_numbers[row] = (item.first_row + row / group) * config.heads + kv_head * group + row % group;

    const int64_t tokens_seen = query.first_position + item.rows;
    const int first_superblock = std::max(item.superblock, 0);
    const int last_superblock = item.superblock >= 0 ? item.superblock : superblocks_for(tokens_seen) - 1;
    clear(scratch.total, query.rows());
    for (int superblock = first_superblock; superblock <= last_superblock; ++superblock) {
      clear(scratch.superblock, query.rows());
      const int64_t first_leaf = int64_t{superblock} * kLeavesPerSuperblock;
      for (int64_t leaf = first_leaf; leaf < first_leaf + kLeavesPerSuperblock; ++leaf) {
        if (leaf * kernels::kLeafTokens >= tokens_seen) break;
        add_leaf(lane, query, leaf, workspace.queries, layer, kv_head, kv, head_dim, scale);
      }
      for (int row = 0; row < query.rows(); ++row) {
        lane.kernels.elementwise->merge_partial(
            {.dst = at(scratch.total, row), .src = at(scratch.superblock, row), .n = padded_outputs});
      }
    }
    for (int row = 0; row < query.rows(); ++row) {
      const kernels::AttentionPartial total = at(scratch.total, row);
      if (item.superblock < 0) {
        finish(item.first_row + row / group, kv_head, row % group, total);
        continue;
      }
      // Partials of an item are [kv head][row].
      const kernels::AttentionPartial slot = at(partials, item.partial + int64_t{kv_head} * query.rows() + row);
      *slot.max = *total.max;
      *slot.sum = *total.sum;
      std::memcpy(slot.out, total.out, padded_outputs * sizeof(float));
    }
  }
  lane.worker.barrier();
  if (plan.merges.empty()) return;

  for (const AttentionMerge& merge : plan.merges) {
    const int64_t rows = int64_t{merge.rows} * config.heads;  // partials of one superblock
    const numa::Range share = lane.worker.share(rows);
    for (int64_t r = share.begin; r < share.end; ++r) {
      const kernels::AttentionPartial total = at(partials, merge.partial + r);
      for (int superblock = 1; superblock < merge.superblocks; ++superblock) {
        lane.kernels.elementwise->merge_partial(
            {.dst = total, .src = at(partials, merge.partial + superblock * rows + r), .n = padded_outputs});
      }
      const int per_head = merge.rows * group;
      const int kv_head = static_cast<int>(r / per_head);
      const int row = static_cast<int>(r % per_head);
      finish(merge.first_row + row / group, kv_head, row % group, total);
    }
  }
  lane.worker.barrier();
}

}  // namespace cpuinfer::model
