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
  KvCache& kv;  // or the stage that cold pages are read into,
  int layer;    // which has one layer
  int kv_head;
  // Of a cold range: the page of the stage that its first leaf lies in.
  int64_t first_leaf = 0;
  int first_stage_page = -1;

  int page(const BatchSequence& sequence, int64_t leaf) const {
    return first_stage_page < 0 ? sequence.pages[leaf] : first_stage_page + static_cast<int>(leaf - first_leaf);
  }
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
  const int page = head.page(query.sequence, leaf);
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

namespace {

// What the workers do with the items of one round, or of all that is resident.
class AttentionPass {
 public:
  AttentionPass(Lane& lane, const ModelConfig& config, const Batch& batch, int layer, const AttentionWeights& weights,
                KvCache& kv, Workspace& workspace)
      : lane_(lane), config_(config), batch_(batch), layer_(layer), weights_(weights), kv_(kv), workspace_(workspace) {}

  // Items of this worker's node. cold_page: the first of the round in the stage; -1: the resident ones.
  void attend(const NodeItems& items, int cold_page);
  // Merges the superblocks of the sequences that were cut by them.
  void merge(std::span<const AttentionMerge> merges, const HeadShare& head_share);

 private:
  int group() const { return config_.heads / config_.kv_heads; }
  int padded_outputs() const { return round_up(config_.head_dim, kernels::kUnitOutputs); }
  PartialRows partials() const { return {workspace_.partial_max, workspace_.partial_sum, workspace_.partial_out}; }
  void copy(const kernels::AttentionPartial& to, const kernels::AttentionPartial& from) const {
    *to.max = *from.max;
    *to.sum = *from.sum;
    std::memcpy(to.out, from.out, padded_outputs() * sizeof(float));
  }
  void finish(int row, int kv_head, int g, const kernels::AttentionPartial& partial) {
    const int segment = round_up(group() * config_.head_dim, kernels::kTileTerms);
    lane_.kernels.elementwise->finish_attention(
        {.x = partial.out,
         .sum = *partial.sum,
         .n = config_.head_dim,
         .out = workspace_.attention[row] + int64_t{kv_head} * segment + int64_t{g} * config_.head_dim});
  }
  void prepare_queries(const HeadContext& head, const AttentionItem& item, const AttentionItem* before,
                       const QueryRows& query);
  void add_superblocks(const HeadContext& head, const AttentionItem& item, const QueryRows& query);

  Lane& lane_;
  const ModelConfig& config_;
  const Batch& batch_;
  int layer_;
  const AttentionWeights& weights_;
  KvCache& kv_;
  Workspace& workspace_;
};

void AttentionPass::attend(const NodeItems& items, int cold_page) {
  WorkerScratch& scratch = lane_.scratch;
  const int64_t first_item = items.first_item[lane_.worker.node];
  const numa::Range share = lane_.worker.share_in_node(items.first_item[lane_.worker.node + 1] - first_item);
  lane_.worker.deal({first_item + share.begin, first_item + share.end});
  const AttentionItem* before = nullptr;
  for (numa::Range piece = lane_.worker.take(1, 1); piece.count() > 0; piece = lane_.worker.take(1, 1)) {
    const AttentionItem& item = items.items[piece.begin];
    const bool cold = cold_page >= 0;
    const HeadContext head = {.config = config_,
                              .weights = weights_,
                              .workspace = workspace_,
                              .kv = cold ? batch_.cold_pages->stage() : kv_,
                              .layer = cold ? 0 : layer_,
                              .kv_head = item.kv_head,
                              .first_leaf = int64_t{item.first_superblock} * kSuperblockPages,
                              .first_stage_page = cold ? cold_page + item.stage_page : -1};
    const BatchSequence& sequence = batch_.sequences[item.sequence];
    const QueryRows query = {.sequence = sequence,
                             .first_position = sequence.start_position + (item.first_row - sequence.first_row),
                             .tokens = item.rows,
                             .group = group(),
                             .queries = sequence.rows <= kFewRows ? scratch.queries : workspace_.queries,
                             .row_numbers = scratch.row_numbers};
    prepare_queries(head, item, before, query);
    before = &item;
    if (item.begins)
      clear(scratch.total, query.rows());
    else
      for (int row = 0; row < query.rows(); ++row) copy(at(scratch.total, row), at(partials(), item.partial + row));
    add_superblocks(head, item, query);
    for (int row = 0; row < query.rows(); ++row) {
      if (item.ends)
        finish(item.first_row + row / group(), item.kv_head, row % group(), at(scratch.total, row));
      else
        copy(at(partials(), item.partial + row), at(scratch.total, row));
    }
  }
}

void AttentionPass::prepare_queries(const HeadContext& head, const AttentionItem& item, const AttentionItem* before,
                                    const QueryRows& query) {
  WorkerScratch& scratch = lane_.scratch;
  if (query.sequence.rows > kFewRows) {
    for (int row = 0; row < query.rows(); ++row)
      scratch.row_numbers[row] =
          (item.first_row + row / group()) * config_.heads + item.kv_head * group() + row % group();
    return;
  }
  const bool same_queries = before != nullptr && before->sequence == item.sequence && before->kv_head == item.kv_head;
  for (int row = 0; row < item.rows; ++row) {
    if (!same_queries) split_queries(lane_, head, item.first_row + row, scratch.queries, int64_t{row} * group());
    if ((query.first_position + row) / kSuperblockTokens == item.first_superblock)
      append_key_value(lane_, head, query.sequence, item.first_row + row);
  }
  for (int row = 0; row < query.rows(); ++row) scratch.row_numbers[row] = row;
}

void AttentionPass::add_superblocks(const HeadContext& head, const AttentionItem& item, const QueryRows& query) {
  WorkerScratch& scratch = lane_.scratch;
  const int64_t tokens_seen = query.first_position + item.rows;
  const int end = std::min(item.end_superblock, superblocks_for(tokens_seen));
  const int64_t leaves_seen =
      std::min(int64_t{end} * kSuperblockPages, ceil_div(tokens_seen, int64_t{kernels::kLeafTokens}));
  for (int superblock = item.first_superblock; superblock < end; ++superblock) {
    clear(scratch.superblock, query.rows());
    const int64_t first_leaf = int64_t{superblock} * kSuperblockPages;
    const int64_t end_leaf = std::min(first_leaf + kSuperblockPages, leaves_seen);
    for (int64_t leaf = first_leaf; leaf < end_leaf; ++leaf) {
      // Of a superblock in an item of its own, the next one is probably read afterwards.
      const bool last =
          head.first_stage_page >= 0 ? leaf + 1 >= leaves_seen : (leaf + 1) * kernels::kLeafTokens >= tokens_seen;
      const bf16* const next =
          last ? nullptr : head.kv.keys(head.layer, head.kv_head, head.page(query.sequence, leaf + 1));
      add_leaf(lane_, head, query, leaf, next);
    }
    for (int row = 0; row < query.rows(); ++row) {
      lane_.kernels.elementwise->merge_partial(
          {.dst = at(scratch.total, row), .src = at(scratch.superblock, row), .n = padded_outputs()});
    }
  }
}

void AttentionPass::merge(std::span<const AttentionMerge> merges, const HeadShare& head_share) {
  for (const AttentionMerge& merge : merges) {
    const int64_t rows = int64_t{merge.rows} * config_.heads;  // partials of one superblock
    const int64_t first_row = head_share.heads.begin * merge.rows * group();
    const numa::Range own = head_share.of(lane_, head_share.heads.count() * merge.rows * group());
    for (int64_t r = first_row + own.begin; r < first_row + own.end; ++r) {
      const kernels::AttentionPartial total = at(partials(), merge.partial + r);
      for (int superblock = 1; superblock < merge.superblocks; ++superblock) {
        lane_.kernels.elementwise->merge_partial(
            {.dst = total, .src = at(partials(), merge.partial + superblock * rows + r), .n = padded_outputs()});
      }
      const int per_head = merge.rows * group();
      const int row = static_cast<int>(r % per_head);
      finish(merge.first_row + row / group(), static_cast<int>(r / per_head), row % group(), total);
    }
  }
}

}  // namespace

void attention(Lane& lane, const ModelConfig& config, const Batch& batch, const AttentionPlan& plan, int layer,
               const AttentionWeights& weights, KvCache& kv, Workspace& workspace) {
  const HeadShare head_share(lane, kv.stripes());
  if (plan.any_long) {
    split_heads(lane, config, batch, layer, weights, kv, workspace);
    head_share.meet(lane);
  }
  AttentionPass pass(lane, config, batch, layer, weights, kv, workspace);
  for (int round = 0; round < static_cast<int>(plan.cold_rounds.size()); ++round) {
    if (lane.worker.rank == 0) batch.cold_pages->wait(layer, round);
    lane.meet();
    batch.cold_pages->verify(layer, round, lane.worker);
    pass.attend(plan.cold_rounds[round], batch.cold_pages->first_page(layer, round));
    lane.meet();
    if (lane.worker.rank == 0) batch.cold_pages->release(layer, round);
  }
  pass.attend(plan.resident, -1);
  if (plan.merges.empty()) return;
  head_share.meet(lane);
  pass.merge(plan.merges, head_share);
}

}  // namespace cpuinfer::model
