#include "engine/model/ops.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "engine/model/matrix_blocks.h"
#include "kernels/pack.h"

namespace cpuinfer::model {
namespace {

// y[begin..end) += bias, clipped to the outputs that exist.
void add_bias(float* y, std::span<const float> bias, int64_t begin, int64_t end) {
  end = std::min(end, static_cast<int64_t>(bias.size()));
  for (int64_t i = begin; i < end; ++i) y[i] += bias[i];
}

void multiply(Lane& lane, Rows<bf16> a, int count, const PackedMatrix& matrix, const ReplicatedVector& bias,
              Rows<float> c, bool accumulate) {
  for_each_piece(lane, worker_units(lane, matrix), units_per_block(matrix), [&](numa::Range units) {
    for_each_row_block(units, count, [&](const MatrixBlock& block) {
      for (int segment = 0; segment < matrix.segments(); ++segment) {
        const kernels::Gemm gemm = {
            .m = block.row_count,
            .n = static_cast<int>(block.units.count()) * kernels::kUnitOutputs,
            .k = round_up(matrix.segment_terms(segment), kernels::kTileTerms),
            .a = a[block.first_row] + int64_t{segment} * matrix.segment_stride(),
            .a_stride = a.stride,
            .w = matrix.unit(lane.worker.node, segment, block.units.begin),
            .w_unit_stride = matrix.unit_elements(),
            .c = c[block.first_row] + block.units.begin * kernels::kUnitOutputs,
            .c_stride = c.stride,
            .accumulate = accumulate || segment > 0,
            .next_w = segment + 1 < matrix.segments() ? matrix.unit(lane.worker.node, segment + 1, block.units.begin)
                                                      : nullptr,
        };
        lane.kernels.gemm(gemm.m).run(gemm);
      }
      if (bias.empty()) return;
      for (int row = block.first_row; row < block.first_row + block.row_count; ++row)
        add_bias(c[row], bias.on(lane.worker.node), block.units.begin * kernels::kUnitOutputs,
                 block.units.end * kernels::kUnitOutputs);
    });
    lane.count(weight_bytes(matrix, units.count()), product_flops(matrix, units, count));
  });
}

}  // namespace

Lane::Lane(numa::Worker& a_worker, const kernels::Kernels& a_kernels, Workspace& workspace)
    : worker(a_worker),
      kernels(a_kernels),
      node(workspace.nodes[a_worker.node]),
      scratch(workspace.workers[a_worker.rank]),
      since_ns_(now_ns()) {}

int64_t Lane::now_ns() const {
  if (!scratch.counting) return 0;
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

Lane::~Lane() { begin(phase_); }

void Lane::begin(Phase phase) {
  const int64_t now = now_ns();
  scratch.counters[static_cast<int>(phase_)].busy_ns += now - since_ns_;
  since_ns_ = now;
  phase_ = phase;
}

template <typename Wait>
void Lane::wait(Wait&& wait) {
  begin(phase_);
  wait();
  const int64_t now = now_ns();
  scratch.counters[static_cast<int>(phase_)].wait_ns += now - since_ns_;
  since_ns_ = now;
}

void Lane::meet() {
  wait([&] { worker.barrier(); });
}

void Lane::meet_in_node() {
  wait([&] { worker.barrier_in_node(); });
}

bool Lane::await_part(WeightSource& source, int layer, LayerPart part) {
  bool there = false;
  wait([&] { there = source.await_part(worker, layer, part); });
  return there;
}

std::optional<numa::Range> Lane::next_experts(WeightSource& source, int layer, const ExpertSlots& slots,
                                              numa::Range previous) {
  std::optional<numa::Range> experts;
  wait([&] { experts = source.next_experts(worker, layer, slots, previous); });
  return experts;
}

void Lane::count(int64_t bytes, int64_t flops) {
  if (!scratch.counting) return;
  PhaseCounters& counters = scratch.counters[static_cast<int>(phase_)];
  counters.bytes += bytes;
  counters.flops += flops;
}

void prefetch(const Lane& lane, const PackedMatrix& matrix) {
  prefetch_units(lane, matrix, worker_units(lane, matrix));
}

void embed(Lane& lane, std::span<const TokenId> tokens, const PackedMatrix& embedding, Rows<float> residual) {
  const numa::Range share = lane.worker.share(static_cast<int64_t>(tokens.size()));
  for (int64_t t = share.begin; t < share.end; ++t) {
    embedding.read_output(tokens[t], lane.scratch.embedding);
    for (int i = 0; i < embedding.terms(); ++i) residual[t][i] = to_float(lane.scratch.embedding[i]);
  }
}

Rows<bf16> rms_norm(Lane& lane, Rows<float> x, const int* pick, int count, const ReplicatedVector& weight, float eps,
                    Rows<bf16> out) {
  const int width = weight.size();
  const auto norm = [&](numa::Range rows, Rows<bf16> to) {
    for (int64_t t = rows.begin; t < rows.end; ++t) {
      lane.kernels.elementwise->rms_norm({.x = x[pick == nullptr ? t : pick[t]],
                                          .weight = weight.on(lane.worker.node).data(),
                                          .n = width,
                                          .eps = eps,
                                          .out = to[t],
                                          .out_count = round_up(width, kernels::kTileTerms)});
    }
  };
  if (count <= kFewRows) {
    norm({0, count}, lane.scratch.normed);
    return lane.scratch.normed;
  }
  norm(lane.worker.share_in_node(count), out);
  lane.meet_in_node();
  return out;
}

Rows<bf16> fetch(Lane& lane, Rows<bf16> rows, int64_t count, bool few, Rows<bf16> own) {
  if (few || lane.worker.nodes == 1) return rows;
  const numa::Range share = lane.worker.share_in_node(count);
  std::memcpy(own[share.begin], rows[share.begin], static_cast<size_t>(share.count() * rows.stride) * sizeof(bf16));
  lane.meet_in_node();
  return own;
}

void linear(Lane& lane, Rows<bf16> a, int count, const PackedMatrix& matrix, const ReplicatedVector& bias,
            Rows<float> c) {
  multiply(lane, a, count, matrix, bias, c, false);
}

void linear_add(Lane& lane, Rows<bf16> a, int count, const PackedMatrix& matrix, const ReplicatedVector& bias,
                Rows<float> residual) {
  multiply(lane, a, count, matrix, bias, residual, true);
}

void silu_mul(Lane& lane, Rows<float> gate_up, int count, int intermediate, Rows<bf16> hidden) {
  const numa::Range share = lane.worker.share(count);
  for (int64_t t = share.begin; t < share.end; ++t) {
    lane.kernels.elementwise->silu_mul({.gate_up = gate_up[t],
                                        .n = round_up(intermediate, 8),
                                        .out = hidden[t],
                                        .out_count = round_up(intermediate, kernels::kTileTerms)});
  }
}

}  // namespace cpuinfer::model
