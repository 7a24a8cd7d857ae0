// Mixture of experts. Sliced: every expert's outputs are spread over all nodes and workers, so that all of them read at
// once, each from its own memory. With whole experts on nodes, a token waits for the node that holds most of its
// experts: of 8 experts on 2 nodes that is 5.06 on average, so that 79 % of the bandwidth is used.
#include <algorithm>

#include "engine/model/matrix_blocks.h"
#include "engine/model/ops.h"

namespace cpuinfer::model {
namespace {

// Counting sort: slots of expert e hold the rows that chose it, in ascending order.
void sort_by_expert(const ModelConfig& config, int count, const ChosenExperts& chosen, const ExpertSlots& slots) {
  std::fill_n(slots.first, config.experts + 1, 0);
  for (int t = 0; t < count; ++t)
    for (int i = 0; i < config.experts_per_token; ++i) ++slots.first[chosen.ids[t][i] + 1];
  for (int e = 0; e < config.experts; ++e) slots.first[e + 1] += slots.first[e];
  for (int t = 0; t < count; ++t) {
    for (int i = 0; i < config.experts_per_token; ++i) {
      const int slot = slots.first[chosen.ids[t][i]]++;
      slots.rows[slot] = t;
      slots.weights[slot] = chosen.weights[t][i];
    }
  }
  // Each first[e] has moved to where expert e + 1 begins: shift back.
  for (int e = config.experts; e > 0; --e) slots.first[e] = slots.first[e - 1];
  slots.first[0] = 0;
}

// Time of one unit for `rows` rows, in units of the time to stream its weights: streaming hides about this many rows.
constexpr int64_t kRowsPerStream = 12;
int64_t unit_cost(int64_t rows) { return std::max(rows, kRowsPerStream); }

// How far ahead rows of the residual stream are asked for.
constexpr int kRowsAhead = 3;
void prefetch_floats(const float* data, int count) {
  for (int i = 0; i < count; i += 16) __builtin_prefetch(data + i, 1, 3);
}

}  // namespace

ExpertSlots route(Lane& lane, const ModelConfig& config, int count, int64_t* counts) {
  const auto choose = [&](numa::Range rows, const ChosenExperts& chosen) {
    for (int64_t t = rows.begin; t < rows.end; ++t) {
      kernels::route({.logits = lane.node.router_logits[t],
                      .experts = config.experts,
                      .chosen = config.experts_per_token,
                      .normalize = config.norm_topk_prob,
                      .expert_ids = chosen.ids[t],
                      .weights = chosen.weights[t],
                      .scratch = lane.scratch.router});
    }
  };
  const bool few = count <= kFewRows;
  const ChosenExperts chosen = few ? lane.scratch.chosen : lane.node.chosen;
  const ExpertSlots slots = few ? lane.scratch.slots : lane.node.slots;
  choose(few ? numa::Range{0, count} : lane.worker.share_in_node(count), chosen);
  if (!few) lane.meet_in_node();
  if (few || lane.worker.rank_in_node == 0) sort_by_expert(config, count, chosen, slots);
  if (!few) lane.meet_in_node();
  if (lane.worker.rank == 0)
    for (int e = 0; e < config.experts; ++e) counts[e] += slots.first[e + 1] - slots.first[e];
  return slots;
}

void experts_gate_up(Lane& lane, const ModelConfig& config, std::span<const Expert> experts, const ExpertSlots& slots,
                     Rows<bf16> normed, Rows<bf16> intermediate) {
  // The units of all experts in use that this node holds, one after the other, are one list that is cut into parts of
  // equal cost. All of these experts have the same units here.
  const numa::Worker& worker = lane.worker;
  numa::Range node_units;
  const auto rows_of = [&](int e) { return slots.first[e + 1] - slots.first[e]; };
  int32_t* const used = lane.scratch.used_experts;
  int used_count = 0;
  int64_t total_cost = 0;
  for (int e = 0; e < static_cast<int>(experts.size()); ++e) {
    const numa::Range units = experts[e].gate_up.shard(worker.node).units;
    if (rows_of(e) == 0 || units.count() == 0) continue;
    node_units = units;
    used[used_count++] = e;
    total_cost += node_units.count() * unit_cost(rows_of(e));
  }
  // A unit belongs at first to the worker in whose share its cost begins.
  const numa::Range cost_share = numa::split(total_cost, worker.count_in_node, worker.rank_in_node);
  numa::Range share = {int64_t{used_count} * node_units.count(), int64_t{used_count} * node_units.count()};
  int64_t cost = 0;  // of everything before used[i]
  for (int i = 0; i < used_count; ++i) {
    const int64_t unit = unit_cost(rows_of(used[i]));
    const auto item_at = [&](int64_t wanted) {
      return i * node_units.count() + std::min(ceil_div(wanted - cost, unit), node_units.count());
    };
    const int64_t end_cost = cost + node_units.count() * unit;
    if (cost_share.begin >= cost && cost_share.begin < end_cost) share.begin = item_at(cost_share.begin);
    if (cost_share.end >= cost && cost_share.end < end_cost) share.end = item_at(cost_share.end);
    cost = end_cost;
  }

  for_each_piece(lane, share, units_per_block(experts[0].gate_up), [&](numa::Range items) {
    // A piece may end in one expert and begin in the one before.
    while (items.count() > 0) {
      const int e = used[items.begin / node_units.count()];
      const int64_t first_unit = items.begin % node_units.count();
      const int64_t count = std::min(items.count(), node_units.count() - first_unit);
      const numa::Range units = {node_units.begin + first_unit, node_units.begin + first_unit + count};
      items.begin += count;

      const PackedMatrix& matrix = experts[e].gate_up;
      const int rows = rows_of(e);
      const int64_t following = std::min(items.begin, used_count * node_units.count() - 1);
      const bf16* const next_w = experts[used[following / node_units.count()]].gate_up.unit(
          worker.node, 0, node_units.begin + following % node_units.count());
      lane.count(weight_bytes(matrix, units.count()), product_flops(matrix, units, rows));
      for_each_row_block(units, rows, [&](const MatrixBlock& block) {
        const kernels::Gemm gemm = {
            .m = block.row_count,
            .n = static_cast<int>(block.units.count()) * kernels::kUnitOutputs,
            .k = matrix.segment_stride(),
            .a = normed.data,
            .a_stride = normed.stride,
            .a_rows = slots.rows + slots.first[e] + block.first_row,
            .w = matrix.unit(worker.node, 0, block.units.begin),
            .w_unit_stride = matrix.unit_elements(),
            .c = lane.scratch.block.data,
            .c_stride = lane.scratch.block.stride,
            .accumulate = false,
            .next_w = next_w,
        };
        lane.kernels.gemm(gemm.m).run(gemm);
        // A unit holds 8 gates and 8 ups: 8 values of the intermediate row. The last one also writes the zeros up to a
        // whole tile of the down matrix.
        const int first = static_cast<int>(block.units.begin) * 8;
        const int width = static_cast<int>(block.units.count()) * 8;
        const bool last = block.units.end == matrix.units();
        const int padded = last ? round_up(config.moe_intermediate, kernels::kTileTerms) - first : width;
        for (int row = 0; row < block.row_count; ++row) {
          lane.kernels.elementwise->silu_mul({.gate_up = lane.scratch.block[row],
                                              .n = width,
                                              .out = intermediate[slots.first[e] + block.first_row + row] + first,
                                              .out_count = padded});
        }
      });
    }
  });
}

namespace {

// Calls body(gemm, first slot) for the products of one expert's slots with some units of its down matrix, in blocks of
// rows; body says where gemm.c is. next_w: what is read afterwards.
template <typename Body>
void for_each_down_product(Lane& lane, const PackedMatrix& matrix, const ExpertSlots& slots, size_t e,
                           numa::Range units, Rows<bf16> intermediate, const bf16* next_w, Body&& body) {
  const int rows = slots.first[e + 1] - slots.first[e];
  lane.count(weight_bytes(matrix, units.count()), product_flops(matrix, units, rows));
  for_each_row_block(units, rows, [&](const MatrixBlock& block) {
    const int first_slot = slots.first[e] + block.first_row;
    body(
        kernels::Gemm{
            .m = block.row_count,
            .n = static_cast<int>(units.count()) * kernels::kUnitOutputs,
            .k = matrix.segment_stride(),
            .a = intermediate[first_slot],
            .a_stride = intermediate.stride,
            .w = matrix.unit(lane.worker.node, 0, units.begin),
            .w_unit_stride = matrix.unit_elements(),
            .accumulate = false,
            .next_w = next_w,
        },
        first_slot);
  });
}

// residual row of each of `rows` slots += weight * product, columns first, first + 1, ...
void add_products(Lane& lane, const ExpertSlots& slots, int first_slot, int rows, Rows<float> products,
                  Rows<float> residual, int64_t first, int columns) {
  const auto target = [&](int row) { return residual[slots.rows[first_slot + row]] + first; };
  for (int row = 0; row < rows; ++row) {
    // The rows of an expert lie anywhere in the residual stream.
    if (row + kRowsAhead < rows) prefetch_floats(target(row + kRowsAhead), columns);
    lane.kernels.elementwise->scale_add(
        {.x = products[row], .scale = slots.weights[first_slot + row], .y = target(row), .n = columns});
  }
}

}  // namespace

void experts_down(Lane& lane, std::span<const Expert> experts, const ExpertSlots& slots, Rows<bf16> intermediate,
                  Rows<float> residual) {
  // A piece is some outputs of all experts, so one worker adds to these columns of the residual, in ascending order of
  // experts: no partial sums are stored and no worker waits for another.
  const PackedMatrix& any = experts[0].down;
  const Rows<float> products = lane.scratch.block;
  for_each_piece(lane, worker_units(lane, any), units_per_block(any), [&](numa::Range units) {
    for (size_t e = 0; e < experts.size(); ++e) {
      if (slots.first[e + 1] == slots.first[e]) continue;
      size_t following = e + 1;
      while (following < experts.size() && slots.first[following + 1] == slots.first[following]) ++following;
      const bf16* const next_w =
          following < experts.size() ? experts[following].down.unit(lane.worker.node, 0, units.begin) : nullptr;
      for_each_down_product(lane, experts[e].down, slots, e, units, intermediate, next_w,
                            [&](kernels::Gemm gemm, int first_slot) {
                              gemm.c = products.data;
                              gemm.c_stride = products.stride;
                              lane.kernels.gemm(gemm.m).run(gemm);
                              add_products(lane, slots, first_slot, gemm.m, products, residual,
                                           units.begin * kernels::kUnitOutputs, gemm.n);
                            });
    }
  });
}

void whole_experts_down(Lane& lane, std::span<const Expert> experts, const ExpertSlots& slots, Rows<bf16> intermediate,
                        Rows<float> outputs, Rows<float> residual) {
  const numa::Worker& worker = lane.worker;
  const int64_t units_of_expert = experts[0].down.units();
  int32_t* const used = lane.scratch.used_experts;
  int used_count = 0;
  for (size_t e = 0; e < experts.size(); ++e)
    if (slots.first[e + 1] > slots.first[e] && experts[e].down.shard(worker.node).units.count() > 0)
      used[used_count++] = static_cast<int32_t>(e);
  const numa::Range share = worker.share_in_node(used_count * units_of_expert);
  for_each_piece(lane, share, units_per_block(experts[0].down), [&](numa::Range items) {
    // A piece may end in one expert and begin in the one before.
    while (items.count() > 0) {
      const int e = used[items.begin / units_of_expert];
      const int64_t first = items.begin % units_of_expert;
      const numa::Range units = {first, std::min(first + items.count(), units_of_expert)};
      items.begin += units.count();
      for_each_down_product(lane, experts[e].down, slots, e, units, intermediate, nullptr,
                            [&](kernels::Gemm gemm, int first_slot) {
                              gemm.c = outputs[first_slot] + units.begin * kernels::kUnitOutputs;
                              gemm.c_stride = outputs.stride;
                              lane.kernels.gemm(gemm.m).run(gemm);
                            });
    }
  });
  lane.meet();

  const numa::Range columns = worker.share(units_of_expert);
  if (columns.count() == 0) return;
  const int64_t first = columns.begin * kernels::kUnitOutputs;
  for (size_t e = 0; e < experts.size(); ++e) {
    const int first_slot = slots.first[e];
    add_products(lane, slots, first_slot, slots.first[e + 1] - first_slot,
                 {outputs[first_slot] + first, outputs.stride}, residual, first,
                 static_cast<int>(columns.count()) * kernels::kUnitOutputs);
  }
}

}  // namespace cpuinfer::model
