// Mixture of experts: every expert's outputs are spread over all nodes and workers, so that all of them read at once,
// each from its own memory. With whole experts on nodes, a token would wait for the node that holds most of its
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

}  // namespace

ExpertSlots route(Lane& lane, const ModelConfig& config, int count, Workspace& workspace) {
  const auto choose = [&](numa::Range rows, const ChosenExperts& chosen) {
    for (int64_t t = rows.begin; t < rows.end; ++t) {
      kernels::route({.logits = workspace.router_logits[t],
                      .experts = config.experts,
                      .chosen = config.experts_per_token,
                      .normalize = config.norm_topk_prob,
                      .expert_ids = chosen.ids[t],
                      .weights = chosen.weights[t],
                      .scratch = lane.scratch.router});
    }
  };
  if (count <= kFewRows) {
    choose({0, count}, lane.scratch.chosen);
    sort_by_expert(config, count, lane.scratch.chosen, lane.scratch.slots);
    return lane.scratch.slots;
  }
  choose(lane.worker.share(count), workspace.chosen);
  lane.meet();
  if (lane.worker.rank == 0) sort_by_expert(config, count, workspace.chosen, workspace.slots);
  lane.meet();
  return workspace.slots;
}

void experts_gate_up(Lane& lane, const ModelConfig& config, std::span<const Expert> experts, const ExpertSlots& slots,
                     Rows<bf16> normed, Rows<bf16> intermediate) {
  // The units of all experts in use, one after the other, are one list that is cut into parts of equal cost.
  const numa::Worker& worker = lane.worker;
  const int64_t node_units = experts[0].gate_up.shard(worker.node).units.count();
  const int64_t node_first = experts[0].gate_up.shard(worker.node).units.begin;
  int64_t total_cost = 0;
  for (size_t e = 0; e < experts.size(); ++e)
    if (const int rows = slots.first[e + 1] - slots.first[e]; rows > 0) total_cost += node_units * unit_cost(rows);
  const numa::Range share = numa::split(total_cost, worker.count_in_node, worker.rank_in_node);

  int64_t cost = 0;  // of everything before expert e
  for (size_t e = 0; e < experts.size() && cost < share.end; ++e) {
    const int rows = slots.first[e + 1] - slots.first[e];
    if (rows == 0) continue;
    const int64_t unit = unit_cost(rows);
    // A unit belongs to the worker in whose share its cost begins.
    const int64_t begin = std::clamp<int64_t>(ceil_div(std::max<int64_t>(share.begin - cost, 0), unit), 0, node_units);
    const int64_t end = std::clamp<int64_t>(ceil_div(share.end - cost, unit), 0, node_units);
    cost += node_units * unit;
    const PackedMatrix& matrix = experts[e].gate_up;
    lane.count(weight_bytes(matrix, end - begin), product_flops(matrix, {node_first + begin, node_first + end}, rows));
    for_each_block(
        {node_first + begin, node_first + end}, units_per_block(matrix), rows, [&](const MatrixBlock& block) {
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
          };
          lane.kernels.gemm(gemm.m).run(gemm);
          // A unit holds 8 gates and 8 ups: 8 values of the intermediate row. The last one also writes the zeros up to
          // a whole tile of the down matrix.
          const int first = static_cast<int>(block.units.begin) * 8;
          const int count = static_cast<int>(block.units.count()) * 8;
          const bool last = block.units.end == matrix.units();
          const int padded = last ? round_up(config.moe_intermediate, kernels::kTileTerms) - first : count;
          for (int row = 0; row < block.row_count; ++row) {
            lane.kernels.elementwise->silu_mul({.gate_up = lane.scratch.block[row],
                                                .n = count,
                                                .out = intermediate[slots.first[e] + block.first_row + row] + first,
                                                .out_count = padded});
          }
        });
  }
}

void experts_down(Lane& lane, std::span<const Expert> experts, const ExpertSlots& slots, Rows<bf16> intermediate,
                  Rows<float> residual) {
  // A worker owns some outputs of all experts, so it alone adds to these columns of the residual, in ascending order
  // of experts: no partial sums are stored and no worker waits for another.
  const numa::Range units = worker_units(lane, experts[0].down);
  const int64_t block_units = units_per_block(experts[0].down);
  for (size_t e = 0; e < experts.size(); ++e) {
    if (const int rows = slots.first[e + 1] - slots.first[e]; rows > 0)
      lane.count(weight_bytes(experts[e].down, units.count()), product_flops(experts[e].down, units, rows));
  }
  for (int64_t first_unit = units.begin; first_unit < units.end; first_unit += block_units) {
    const numa::Range columns = {first_unit, std::min(first_unit + block_units, units.end)};
    const int column_count = static_cast<int>(columns.count()) * kernels::kUnitOutputs;
    for (size_t e = 0; e < experts.size(); ++e) {
      const PackedMatrix& matrix = experts[e].down;
      for_each_block(columns, block_units, slots.first[e + 1] - slots.first[e], [&](const MatrixBlock& block) {
        const int first_slot = slots.first[e] + block.first_row;
        const kernels::Gemm gemm = {
            .m = block.row_count,
            .n = column_count,
            .k = matrix.segment_stride(),
            .a = intermediate[first_slot],
            .a_stride = intermediate.stride,
            .w = matrix.unit(lane.worker.node, 0, columns.begin),
            .w_unit_stride = matrix.unit_elements(),
            .c = lane.scratch.block.data,
            .c_stride = lane.scratch.block.stride,
            .accumulate = false,
        };
        lane.kernels.gemm(gemm.m).run(gemm);
        for (int row = 0; row < block.row_count; ++row) {
          lane.kernels.elementwise->scale_add(
              {.x = lane.scratch.block[row],
               .scale = slots.weights[first_slot + row],
               .y = residual[slots.rows[first_slot + row]] + columns.begin * kernels::kUnitOutputs,
               .n = column_count});
        }
      });
    }
  }
}

}  // namespace cpuinfer::model
