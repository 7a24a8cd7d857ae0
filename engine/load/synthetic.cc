#include "engine/load/synthetic.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/format.h"

namespace cpuinfer::load {
namespace {

using model::PackedMatrix;
using model::RowRun;
using model::WeightSpec;

// A matrix to be filled, and the key of its numbers. Made before the workers start, read by all of them.
struct MatrixTarget {
  PackedMatrix* matrix;
  std::span<const RowRun> runs;  // empty: all outputs exist
  uint64_t key;
  int exponent;

  bool output_exists(int64_t output) const {
    if (output >= matrix->outputs()) return false;
    if (runs.empty()) return true;
    const auto after = [](int64_t wanted, const RowRun& run) { return wanted < run.output; };
    return (std::upper_bound(runs.begin(), runs.end(), output, after) - 1)->tensor >= 0;
  }
};

// Element (term, output) of a packed unit: kernels/pack.h.
bf16& element(bf16* unit, int term, int output) {
  return unit[(term / 2 * kernels::kUnitOutputs + output) * 2 + term % 2];
}

void fill_unit(const MatrixTarget& target, int node, int64_t unit) {
  const PackedMatrix& matrix = *target.matrix;
  const size_t elements = static_cast<size_t>(matrix.unit_elements());
  for (int segment = 0; segment < matrix.segments(); ++segment) {
    bf16* const out = matrix.unit(node, segment, unit);
    const uint64_t key = random_bits(target.key, static_cast<uint64_t>(segment * int64_t{matrix.units()} + unit));
    fill_random(key, target.exponent, {out, elements});
    for (int term = matrix.segment_terms(segment); term < matrix.segment_stride(); ++term)
      for (int output = 0; output < kernels::kUnitOutputs; ++output) element(out, term, output) = bf16{};
    for (int output = 0; output < kernels::kUnitOutputs; ++output) {
      if (target.output_exists(unit * kernels::kUnitOutputs + output)) continue;
      for (int term = 0; term < matrix.segment_stride(); ++term) element(out, term, output) = bf16{};
    }
  }
}

void fill_vector(const WeightSpec& spec) {
  const bool norm = spec.tensors[0].name.ends_with("norm.weight");
  for (int node = 0; node < spec.vector->nodes(); ++node)
    for (float& value : spec.vector->on(node)) value = norm ? 1.0f : 0.0f;
}

}  // namespace

void fill_random(uint64_t key, int exponent, std::span<bf16> out) {
  ENSURE(exponent >= -120 && exponent <= 120 && out.size() % 4 == 0, "exponents are normal, elements come in fours");
  // Four numbers at once, one in each 16 bits: sign and mantissa from the random bits as they are; two more of those
  // bits are taken off the exponent, which never borrows from a neighbour.
  constexpr uint64_t kEach = 0x0001000100010001u;
  const uint64_t exponents = kEach * (static_cast<uint64_t>(127 + exponent) << 7);
  for (size_t i = 0; i < out.size(); i += 4) {
    const uint64_t bits = random_bits(key, i / 4);
    const uint64_t four = (bits & kEach * 0x807f) | (exponents - (bits & kEach * 0x0180));
    std::memcpy(&out[i], &four, sizeof(four));
  }
}

int exponent_for_terms(int64_t terms) {
  const int bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(std::max<int64_t>(terms, 1))));
  return -(bits / 2);
}

SyntheticWeights::SyntheticWeights(model::Model& model, uint64_t seed) {
  model.visit_weights([&](const WeightSpec& spec) {
    if (spec.matrix != nullptr) keys_.emplace(spec.matrix, random_bits(seed, keys_.size()));
  });
}

Result<void> SyntheticWeights::fill(std::span<const WeightSpec> specs, numa::Team& team,
                                    const LoadOptions& options) const {
  std::vector<MatrixTarget> targets;
  int64_t total_bytes = 0;
  for (const WeightSpec& spec : specs) {
    if (spec.matrix == nullptr) {
      fill_vector(spec);
      continue;
    }
    const bool embedding = spec.tensors[0].name.ends_with("embed_tokens.weight");
    targets.push_back(
        {spec.matrix, spec.outputs, keys_.at(spec.matrix), embedding ? 0 : exponent_for_terms(spec.matrix->terms())});
    for (int node = 0; node < team.nodes(); ++node) total_bytes += spec.matrix->shard_bytes(node);
  }

  std::atomic<int64_t> done_bytes = 0;
  std::atomic<bool> stopped = false;
  team.run([&](numa::Worker& worker) {
    for (const MatrixTarget& target : targets) {
      const numa::Range shard = target.matrix->shard(worker.node).units;
      const numa::Range share = numa::split(shard.count(), worker.count_in_node, worker.rank_in_node);
      const int64_t unit_bytes =
          target.matrix->segments() * target.matrix->unit_elements() * static_cast<int64_t>(sizeof(bf16));
      for (int64_t unit = share.begin; unit < share.end; ++unit) {
        if (options.cancel != nullptr && options.cancel->load(std::memory_order_relaxed)) stopped = true;
        if (stopped.load(std::memory_order_relaxed)) return;
        fill_unit(target, worker.node, shard.begin + unit);
        done_bytes.fetch_add(unit_bytes, std::memory_order_relaxed);
      }
      if (worker.rank == 0 && options.progress) options.progress(done_bytes.load(), total_bytes);
    }
  });
  if (stopped) return fail(ErrorCode::kInterrupted, "making the weights was interrupted");
  if (options.progress) options.progress(total_bytes, total_bytes);
  return {};
}

Result<WeightMemory> fill_synthetic(model::Model& model, uint64_t seed, numa::Team& team,
                                    const numa::Topology& topology, const LoadOptions& options) {
  TRY_ASSIGN(WeightMemory memory, allocate_weights(model, team.nodes(), topology));
  std::vector<WeightSpec> specs;
  model.visit_weights([&](const WeightSpec& spec) { specs.push_back(spec); });
  TRY(SyntheticWeights(model, seed).fill(specs, team, options));
  return memory;
}

}  // namespace cpuinfer::load
