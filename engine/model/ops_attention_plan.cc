// How the attention of a batch is cut into items, and which worker's node does them.
#include <algorithm>

#include "engine/model/ops.h"
#include "kernels/pack.h"

namespace cpuinfer::model {

void reserve_attention_plan(const ModelConfig& config, const StepLimits& limits, int nodes, AttentionPlan& plan) {
  const int rows_per_item = std::max(1, kRowBlock / (config.heads / config.kv_heads));
  plan.merges.reserve(limits.sequences);
  plan.resident.items.reserve(config.kv_heads * (limits.context_tokens / kSuperblockTokens +
                                                 2 * int64_t{limits.sequences} + limits.rows / rows_per_item));
  plan.resident.first_item.reserve(nodes + 1);
}

namespace {

// Where the partials of a sequence begin, and whether it needs them.
struct PartialRange {
  int64_t first = 0;
  bool used = false;
};

// The partials of the sequences, one after the other, and what is to be merged.
template <typename Visit>
void deal_partials(const ModelConfig& config, const Batch& batch, Visit&& visit) {
  int64_t next = 0;
  for (int s = 0; s < static_cast<int>(batch.sequences.size()); ++s) {
    const BatchSequence& sequence = batch.sequences[s];
    const int superblocks = superblocks_for(sequence.start_position + sequence.rows);
    const bool few = sequence.rows <= kFewRows;
    const bool used = few ? superblocks > 1 : sequence.cold_superblocks > 0;
    visit(s, PartialRange{next, used});
    if (used) next += int64_t{few ? superblocks : 1} * sequence.rows * config.heads;
  }
}

// An item for one superblock of a sequence with few rows.
AttentionItem superblock_item(const ModelConfig& config, const BatchSequence& sequence, int s, int kv_head,
                              int superblock, PartialRange partials) {
  // Partials are [superblock][kv head][row].
  const int64_t rows_of_head = int64_t{sequence.rows} * (config.heads / config.kv_heads);
  AttentionItem item = {.sequence = s,
                        .kv_head = kv_head,
                        .first_row = sequence.first_row,
                        .rows = sequence.rows,
                        .first_superblock = superblock,
                        .end_superblock = superblock + 1};
  if (partials.used) {
    item.partial = partials.first + (int64_t{superblock} * config.kv_heads + kv_head) * rows_of_head;
    item.ends = false;
  }
  return item;
}

// Calls add(item) for the rows of a longer sequence, in items of rows_per_item, for superblocks first .. end - 1.
// `picked` says which of a head's items are wanted.
template <typename Picked, typename Add>
void row_items(const ModelConfig& config, const BatchSequence& sequence, int s, int kv_head, int first, int end,
               PartialRange partials, Picked&& picked, Add&& add) {
  const int group = config.heads / config.kv_heads;
  const int rows_per_item = std::max(1, kRowBlock / group);
  for (int row = 0; row < sequence.rows; row += rows_per_item) {
    if (!picked(row / rows_per_item)) continue;
    AttentionItem item = {.sequence = s,
                          .kv_head = kv_head,
                          .first_row = sequence.first_row + row,
                          .rows = std::min(rows_per_item, sequence.rows - row),
                          .first_superblock = first,
                          .end_superblock = end};
    // Partials are [kv head][row].
    if (partials.used) item.partial = partials.first + (int64_t{kv_head} * sequence.rows + row) * group;
    item.begins = first == 0;
    item.ends = end > sequence.cold_superblocks;
    add(item);
  }
}

// The items of one cold round: superblocks batch.cold[begin .. end), those that follow each other in one sequence as
// one range.
void plan_cold_round(const ModelConfig& config, const Batch& batch, std::span<const PartialRange> partials,
                     size_t begin, size_t end, NodeItems& round) {
  const KvCache& stage = batch.cold_pages->stage();
  for (int node = 0; node < stage.stripes().nodes(); ++node) {
    round.first_item.push_back(static_cast<int64_t>(round.items.size()));
    const auto page_of = [&](size_t i) { return static_cast<int>(i - begin) * kSuperblockPages; };
    const auto add = [&](AttentionItem item, size_t i) {
      item.stage_page = page_of(i);
      round.items.push_back(item);
    };
    for (size_t i = begin; i < end;) {
      const ColdSuperblock& cold = batch.cold[i];
      const BatchSequence& sequence = batch.sequences[cold.sequence];
      size_t next = i + 1;
      while (next < end && batch.cold[next].sequence == cold.sequence) ++next;
      for (int kv_head = 0; kv_head < config.kv_heads; ++kv_head) {
        if (sequence.rows <= kFewRows) {
          for (size_t j = i; j < next; ++j)
            if (stage.node_of(kv_head, page_of(j)) == node)
              add(superblock_item(config, sequence, cold.sequence, kv_head, batch.cold[j].superblock,
                                  partials[cold.sequence]),
                  j);
          continue;
        }
        const auto picked = [&](int item) {
          return stage.stripes().node(kv_head, item % stage.stripes().stripes()) == node;
        };
        row_items(config, sequence, cold.sequence, kv_head, cold.superblock, batch.cold[next - 1].superblock + 1,
                  partials[cold.sequence], picked, [&](const AttentionItem& item) { add(item, i); });
      }
      i = next;
    }
  }
  round.first_item.push_back(static_cast<int64_t>(round.items.size()));
}

}  // namespace

void make_attention_plan(const ModelConfig& config, const Batch& batch, const KvCache& kv, AttentionPlan& plan) {
  plan.resident.items.clear();
  plan.resident.first_item.clear();
  plan.cold_rounds.clear();
  plan.merges.clear();
  plan.any_long = false;
  deal_partials(config, batch, [&](int s, PartialRange partials) {
    const BatchSequence& sequence = batch.sequences[s];
    if (sequence.rows > kFewRows)
      plan.any_long = true;
    else if (partials.used)
      plan.merges.push_back({sequence.first_row, sequence.rows,
                             superblocks_for(sequence.start_position + sequence.rows), partials.first});
  });
  for (int node = 0; node < kv.stripes().nodes(); ++node) {
    plan.resident.first_item.push_back(static_cast<int64_t>(plan.resident.items.size()));
    deal_partials(config, batch, [&](int s, PartialRange partials) {
      const BatchSequence& sequence = batch.sequences[s];
      const int superblocks = superblocks_for(sequence.start_position + sequence.rows);
      for (int kv_head = 0; kv_head < config.kv_heads; ++kv_head) {
        if (sequence.rows <= kFewRows) {
          for (int superblock = sequence.cold_superblocks; superblock < superblocks; ++superblock)
            if (kv.node_of(kv_head, sequence.pages[superblock * kSuperblockPages]) == node)
              plan.resident.items.push_back(superblock_item(config, sequence, s, kv_head, superblock, partials));
          continue;
        }
        // An item reads all superblocks: of a head on several nodes, each of them takes some items.
        const auto picked = [&](int item) { return kv.stripes().node(kv_head, item % kv.stripes().stripes()) == node; };
        row_items(config, sequence, s, kv_head, sequence.cold_superblocks, superblocks, partials, picked,
                  [&](const AttentionItem& item) { plan.resident.items.push_back(item); });
      }
    });
  }
  plan.resident.first_item.push_back(static_cast<int64_t>(plan.resident.items.size()));
  if (batch.cold.empty()) return;
  std::vector<PartialRange> partials(batch.sequences.size());
  deal_partials(config, batch, [&](int s, PartialRange range) { partials[s] = range; });
  const size_t step = static_cast<size_t>(batch.cold_pages->superblocks_per_round());
  for (size_t begin = 0; begin < batch.cold.size(); begin += step)
    plan_cold_round(config, batch, partials, begin, std::min(begin + step, batch.cold.size()),
                    plan.cold_rounds.emplace_back());
}

}  // namespace cpuinfer::model
