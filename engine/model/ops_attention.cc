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
  Rows<bf16> queries;
  const int32_t* row_numbers;  // [tokens * group] rows of `queries`

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

// Which part of the cache and of the model an item of attention is about.
struct HeadContext {
  const ModelConfig& config;
  const AttentionWeights& weights;
  const Workspace& workspace;
  KvCache& kv;
  int layer;
  int kv_head;

  int group() const { return config.heads / config.kv_heads; }
  // The float32 outputs of this kv head in a row of qkv: its query heads, then the key, then the value.
  const float* heads_of(int64_t row) const {
    return workspace.qkv[row] + int64_t{kv_head} * (group() + 2) * config.head_dim;
  }
};

void norm_rope(Lane& lane, const HeadContext& head, int64_t row, const float* x, const ReplicatedVector& weight,
               bf16* out) {
  lane.kernels.elementwise->norm_rope({.x = x,
                                       .weight = weight.on(lane.worker.node).data(),
                                       .cos = head.workspace.cos[row],
                                       .sin = head.workspace.sin[row],
                                       .n = head.config.head_dim,
                                       .eps = head.weights.rms_eps,
                                       .out = out,
                                       .out_count = head.kv.head_dim_padded()});
}

// The query heads of one row, to rows first, first + 1, ... of `queries`.
void split_queries(Lane& lane, const HeadContext& head, int64_t row, Rows<bf16> queries, int64_t first) {
  for (int g = 0; g < head.group(); ++g)
    norm_rope(lane, head, row, head.heads_of(row) + int64_t{g} * head.config.head_dim, head.weights.query_norm,
              queries[first + g]);
}

// The key and the value of one row, to their place in the cache.
void append_key_value(Lane& lane, const HeadContext& head, const BatchSequence& sequence, int64_t row) {
  const int padded = head.kv.head_dim_padded();
  const int64_t position = sequence.start_position + (row - sequence.first_row);
  const int page = sequence.pages[position / kernels::kLeafTokens];
  const int slot = static_cast<int>(position % kernels::kLeafTokens);
  const float* const key = head.heads_of(row) + int64_t{head.group()} * head.config.head_dim;
  const float* const value = key + head.config.head_dim;
  bf16* const buffer = lane.scratch.head;
  norm_rope(lane, head, row, key, head.weights.key_norm, buffer);
  kernels::store_key(head.kv.keys(head.layer, head.kv_head, page), slot, buffer, padded);
  for (int i = 0; i < padded; ++i) buffer[i] = i < head.config.head_dim ? to_bf16(value[i]) : bf16{};
  kernels::store_value(head.kv.values(head.layer, head.kv_head, page), slot, buffer, padded);
}

// Who does what is to be done for every kv head: the workers of its node if it has one, else all.
struct HeadShare {
  numa::Range heads;
  bool in_node;

  HeadShare(const Lane& lane, const KvStripes& stripes)
      : heads(stripes.stripes() == 1 ? stripes.heads_of(lane.worker.node) : numa::Range{0, stripes.kv_heads()}),
        in_node(stripes.stripes() == 1) {}
  // This worker's part of `items` that are to be done for the heads.
  numa::Range of(const Lane& lane, int64_t items) const {
    return in_node ? lane.worker.share_in_node(items) : lane.worker.share(items);
  }
  void meet(Lane& lane) const { in_node ? lane.meet_in_node() : lane.meet(); }
};

// Heads of the sequences with more than kFewRows rows: queries to workspace.queries, keys and values to the cache.
void split_heads(Lane& lane, const ModelConfig& config, const Batch& batch, int layer, const AttentionWeights& weights,
                 KvCache& kv, const Workspace& workspace) {
  // Item = (kv head, row), kv head outermost, so that few pages are written by two workers.
  const HeadShare head_share(lane, kv.stripes());
  const numa::Range share = head_share.of(lane, head_share.heads.count() * batch.rows());
  for (const BatchSequence& sequence : batch.sequences) {
    if (sequence.rows <= kFewRows) continue;
    for (int64_t h = 0; h < head_share.heads.count(); ++h) {
      const int kv_head = static_cast<int>(head_share.heads.begin + h);
      const HeadContext head = {config, weights, workspace, kv, layer, kv_head};
      const int64_t base = h * batch.rows();
      const int64_t begin = std::max<int64_t>(share.begin - base, sequence.first_row);
      const int64_t end = std::min<int64_t>(share.end - base, sequence.first_row + sequence.rows);
      for (int64_t row = begin; row < end; ++row) {
        split_queries(lane, head, row, workspace.queries, row * config.heads + kv_head * head.group());
        append_key_value(lane, head, sequence, row);
      }
    }
  }
}

// Memory that will be read soon, asked for piece by piece while something else is computed: the `index`-th of `count`
// equal pieces of kBytes. Where pages follow each other the product before has asked for what comes first.
void prefetch_piece(const bf16* next, int index, int count) {
  constexpr int kFirst = 16 * 1024, kBytes = 16 * 1024, kLineBytes = 64;
  // As an integer: small pages end before, and the last one has none behind it.
  const uintptr_t bytes = reinterpret_cast<uintptr_t>(next) + kFirst;
  for (int i = index * kBytes / count; i < (index + 1) * kBytes / count; i += kLineBytes)
    __builtin_prefetch(reinterpret_cast<const void*>(bytes + i), 0, 2);
}

// Computes one leaf for all rows that see any of its tokens and merges it into scratch.superblock. `next_leaf` is what
// will probably be read afterwards.
void add_leaf(Lane& lane, const HeadContext& head, const QueryRows& query, int64_t leaf, const bf16* next_leaf) {
  WorkerScratch& scratch = lane.scratch;
  const int head_dim = head.config.head_dim;
  const float scale =
      static_cast<float>(static_cast<double>(kernels::kLog2e) / std::sqrt(static_cast<double>(head_dim)));
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
  const int head_dim_padded = head.kv.head_dim_padded();
  const int value_terms = round_up(widest, kernels::kTileTerms);
  const bf16* const values = head.kv.values(head.layer, head.kv_head, page);
  // With few rows the cache's stream is what takes time, and it must not rest while the softmax is computed.
  const bool streams = rows <= kFewRows * query.group;

  const kernels::Gemm scores = {
      .m = rows,
      .n = round_up(widest, kernels::kUnitOutputs),
      .k = head_dim_padded,
      .a = query.queries.data,
      .a_stride = query.queries.stride,
      .a_rows = query.row_numbers + first,
      .w = head.kv.keys(head.layer, head.kv_head, page),
      .w_unit_stride = kernels::unit_elements(head_dim_padded),
      .c = scratch.scores.data,
      .c_stride = scratch.scores.stride,
      .accumulate = false,
  };
  lane.kernels.gemm(rows).run(scores);
  int64_t seen = 0;
  for (int row = 0; row < rows; ++row) {
    if (streams) prefetch_piece(values, row, rows);
    const int valid = visible(first + row);
    seen += valid;
    lane.kernels.elementwise->softmax_leaf({.scores = scratch.scores[row],
                                            .valid = valid,
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
      .w = values,
      .w_unit_stride = kernels::unit_elements(kernels::kLeafTokens),
      .c = scratch.leaf.out.data,
      .c_stride = scratch.leaf.out.stride,
      .accumulate = true,
  };
  lane.kernels.gemm(rows).run(output);
  for (int row = 0; row < rows; ++row) {
    if (streams && next_leaf != nullptr) prefetch_piece(next_leaf, row, rows);
    lane.kernels.elementwise->merge_partial({.dst = at(scratch.superblock, first + row),
                                             .src = at(scratch.leaf, row),
                                             .n = round_up(head_dim, kernels::kUnitOutputs)});
  }
  // Of the items that read a leaf for rows of one sequence, that of the last rows reads all of what is visible.
  const bool reads_for_all = query.first_position + query.tokens == query.sequence.start_position + query.sequence.rows;
  constexpr int64_t kKeyAndValue = 2 * static_cast<int64_t>(sizeof(bf16));
  lane.count(reads_for_all ? widest * head_dim * kKeyAndValue : 0, 4 * seen * head_dim);
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
}

void reserve_attention_plan(const ModelConfig& config, const StepLimits& limits, int nodes, AttentionPlan& plan) {
  const int rows_per_item = std::max(1, kRowBlock / (config.heads / config.kv_heads));
  plan.merges.reserve(limits.sequences);
  plan.items.reserve(config.kv_heads * (limits.context_tokens / kSuperblockTokens + 2 * int64_t{limits.sequences} +
                                        limits.rows / rows_per_item));
  plan.first_item.reserve(nodes + 1);
}

void make_attention_plan(const ModelConfig& config, const Batch& batch, const KvCache& kv, AttentionPlan& plan) {
  plan.items.clear();
  plan.first_item.clear();
  plan.merges.clear();
  plan.any_long = false;
  const int rows_per_item = std::max(1, kRowBlock / (config.heads / config.kv_heads));
  for (int node = 0; node < kv.stripes().nodes(); ++node) {
    plan.first_item.push_back(static_cast<int64_t>(plan.items.size()));
    int64_t partial = 0;
    for (int s = 0; s < static_cast<int>(batch.sequences.size()); ++s) {
      const BatchSequence& sequence = batch.sequences[s];
      if (sequence.rows <= kFewRows) {
        const int superblocks = superblocks_for(sequence.start_position + sequence.rows);
        const bool merges = superblocks > 1;
        if (merges && node == 0) plan.merges.push_back({sequence.first_row, sequence.rows, superblocks, partial});
        // Partials are [superblock][kv head][row].
        const int64_t rows_of_head = int64_t{sequence.rows} * (config.heads / config.kv_heads);
        for (int kv_head = 0; kv_head < config.kv_heads; ++kv_head) {
          for (int superblock = 0; superblock < superblocks; ++superblock) {
            if (kv.node_of(kv_head, sequence.pages[superblock * kLeavesPerSuperblock]) != node) continue;
            const int64_t first = partial + (int64_t{superblock} * config.kv_heads + kv_head) * rows_of_head;
            plan.items.push_back(
                {s, kv_head, sequence.first_row, sequence.rows, superblock, merges ? first : int64_t{-1}});
          }
        }
        if (merges) partial += superblocks * config.kv_heads * rows_of_head;
        continue;
      }
      plan.any_long = true;
      for (int kv_head = 0; kv_head < config.kv_heads; ++kv_head) {
        for (int row = 0; row < sequence.rows; row += rows_per_item) {
          // An item reads all superblocks: of a head on several nodes, each of them takes some items.
          if (kv.stripes().node(kv_head, row / rows_per_item % kv.stripes().stripes()) != node) continue;
          plan.items.push_back(
              {s, kv_head, sequence.first_row + row, std::min(rows_per_item, sequence.rows - row), -1, -1});
        }
      }
    }
  }
  plan.first_item.push_back(static_cast<int64_t>(plan.items.size()));
}

void attention(Lane& lane, const ModelConfig& config, const Batch& batch, const AttentionPlan& plan, int layer,
               const AttentionWeights& weights, KvCache& kv, Workspace& workspace) {
  WorkerScratch& scratch = lane.scratch;
  const int group = config.heads / config.kv_heads;
  const int head_dim = config.head_dim;
  const int padded_outputs = round_up(head_dim, kernels::kUnitOutputs);
  const int segment = round_up(group * head_dim, kernels::kTileTerms);
  const PartialRows partials = {workspace.partial_max, workspace.partial_sum, workspace.partial_out};

  const auto finish = [&](int row, int kv_head, int g, const kernels::AttentionPartial& partial) {
    lane.kernels.elementwise->finish_attention(
        {.x = partial.out,
         .sum = *partial.sum,
         .n = head_dim,
         .out = workspace.attention[row] + int64_t{kv_head} * segment + int64_t{g} * head_dim});
  };

  const HeadShare head_share(lane, kv.stripes());
  if (plan.any_long) {
    split_heads(lane, config, batch, layer, weights, kv, workspace);
    head_share.meet(lane);
  }

  const int64_t first_item = plan.first_item[lane.worker.node];
  const numa::Range share = lane.worker.share_in_node(plan.first_item[lane.worker.node + 1] - first_item);
  lane.worker.deal({first_item + share.begin, first_item + share.end});
  const AttentionItem* before = nullptr;
  for (numa::Range piece = lane.worker.take(1, 1); piece.count() > 0; piece = lane.worker.take(1, 1)) {
    const AttentionItem& item = plan.items[piece.begin];
    const int kv_head = item.kv_head;
    const HeadContext head = {config, weights, workspace, kv, layer, kv_head};
    const BatchSequence& sequence = batch.sequences[item.sequence];
    const bool few = sequence.rows <= kFewRows;
    const QueryRows query = {.sequence = sequence,
                             .first_position = sequence.start_position + (item.first_row - sequence.first_row),
                             .tokens = item.rows,
                             .group = group,
                             .queries = few ? scratch.queries : workspace.queries,
                             .row_numbers = scratch.row_numbers};
    if (few) {
      const bool same_queries = before != nullptr && before->sequence == item.sequence && before->kv_head == kv_head;
      for (int row = 0; row < item.rows; ++row) {
        if (!same_queries) split_queries(lane, head, item.first_row + row, scratch.queries, int64_t{row} * group);
        if ((query.first_position + row) / kSuperblockTokens == item.superblock)
          append_key_value(lane, head, sequence, item.first_row + row);
      }
      for (int row = 0; row < query.rows(); ++row) scratch.row_numbers[row] = row;
    } else {
      for (int row = 0; row < query.rows(); ++row)
        scratch.row_numbers[row] = (item.first_row + row / group) * config.heads + kv_head * group + row % group;
    }
    before = &item;

    const int64_t tokens_seen = query.first_position + item.rows;
    const int first_superblock = std::max(item.superblock, 0);
    const int last_superblock = item.superblock >= 0 ? item.superblock : superblocks_for(tokens_seen) - 1;
    clear(scratch.total, query.rows());
    for (int superblock = first_superblock; superblock <= last_superblock; ++superblock) {
      clear(scratch.superblock, query.rows());
      const int64_t first_leaf = int64_t{superblock} * kLeavesPerSuperblock;
      const int64_t end_leaf =
          std::min(first_leaf + kLeavesPerSuperblock, ceil_div(tokens_seen, int64_t{kernels::kLeafTokens}));
      for (int64_t leaf = first_leaf; leaf < end_leaf; ++leaf) {
        const bool last = (leaf + 1) * kernels::kLeafTokens >= tokens_seen;
        const bf16* const next = last ? nullptr : kv.keys(layer, kv_head, sequence.pages[leaf + 1]);
        add_leaf(lane, head, query, leaf, next);
      }
      for (int row = 0; row < query.rows(); ++row) {
        lane.kernels.elementwise->merge_partial(
            {.dst = at(scratch.total, row), .src = at(scratch.superblock, row), .n = padded_outputs});
      }
    }
    for (int row = 0; row < query.rows(); ++row) {
      const kernels::AttentionPartial total = at(scratch.total, row);
      if (item.partial < 0) {
        finish(item.first_row + row / group, kv_head, row % group, total);
        continue;
      }
      const kernels::AttentionPartial slot = at(partials, item.partial + row);
      *slot.max = *total.max;
      *slot.sum = *total.sum;
      std::memcpy(slot.out, total.out, padded_outputs * sizeof(float));
    }
  }
  if (plan.merges.empty()) return;
  head_share.meet(lane);

  for (const AttentionMerge& merge : plan.merges) {
    const int64_t rows = int64_t{merge.rows} * config.heads;  // partials of one superblock
    const int64_t first_row = head_share.heads.begin * merge.rows * group;
    const numa::Range own = head_share.of(lane, head_share.heads.count() * merge.rows * group);
    for (int64_t r = first_row + own.begin; r < first_row + own.end; ++r) {
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
}

}  // namespace cpuinfer::model
