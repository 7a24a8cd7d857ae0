#include "engine/load/fingerprint.h"

#include <vector>

namespace cpuinfer::load {

using storage::Digest128;

Digest128 piece_digest(std::string_view weight, int64_t number, std::span<const std::byte> bytes) {
  return storage::xxh3_128(bytes, storage::xxh3_64(weight, static_cast<uint64_t>(number)));
}

namespace {

struct NamedMatrix {
  const model::PackedMatrix* matrix;
  std::string name;
};

// What one worker has found. In cache lines of its own.
struct alignas(128) Part {
  Digest128 sum;
};

// The share of `worker` of its node's units.
Digest128 digest_share(const NamedMatrix& named, const numa::Worker& worker) {
  const model::PackedMatrix& matrix = *named.matrix;
  const numa::Range shard = matrix.shard(worker.node).units;
  const numa::Range share = worker.share_in_node(shard.count());
  const size_t unit_bytes = static_cast<size_t>(matrix.unit_elements()) * sizeof(bf16);
  Digest128 sum;
  for (int segment = 0; segment < matrix.segments(); ++segment) {
    for (int64_t unit = shard.begin + share.begin; unit < shard.begin + share.end; ++unit) {
      const auto* const bytes = reinterpret_cast<const std::byte*>(matrix.unit(worker.node, segment, unit));
      sum += piece_digest(named.name, int64_t{segment} * matrix.units() + unit, {bytes, unit_bytes});
    }
  }
  return sum;
}

}  // namespace

Digest128 fingerprint_weights(model::Model& model, numa::Team& team) {
  Digest128 sum;
  std::vector<NamedMatrix> matrices;
  model.visit_weights([&](const model::WeightSpec& spec) {
    if (spec.matrix != nullptr)
      matrices.push_back({spec.matrix, weight_name(spec)});
    else
      sum += piece_digest(weight_name(spec), 0, std::as_bytes(spec.vector->on(0)));
  });
  std::vector<Part> parts(static_cast<size_t>(team.workers()));
  team.run([&](numa::Worker& worker) {
    for (const NamedMatrix& named : matrices) {
      if (named.matrix->split().is_replicated() && worker.node != 0) continue;
      parts[static_cast<size_t>(worker.rank)].sum += digest_share(named, worker);
    }
  });
  for (const Part& part : parts) sum += part.sum;
  return sum;
}

}  // namespace cpuinfer::load
