// What a weight is (WeightSpec: where it comes from) and where it ended up (PackedMatrix: packed units on their nodes).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/types.h"
#include "engine/model/placement.h"
#include "kernels/pack.h"
#include "numa/shard.h"

namespace cpuinfer::model {

/// A matrix [outputs, terms] in packed units of 16 outputs (kernels/pack.h), its units dealt to the nodes. Its terms
/// may be cut into segments of equal length that are separate accumulation chains (docs/numerics.md); segment s reads
/// the activations at s * segment_stride(). Immutable after loading; owns no memory; safe to read from all threads.
class PackedMatrix {
 public:
  /// One node's units: for each segment, the units `units.begin` .. `units.end`, each unit_elements() long.
  struct Shard {
    numa::Range units;
    bf16* data = nullptr;
  };

  PackedMatrix() = default;
  /// segment_terms == 0: one segment. Shards have no memory yet.
  PackedMatrix(int outputs, int terms, int segment_terms, const UnitSplit& split);

  int outputs() const { return outputs_; }
  int padded_outputs() const { return units() * kernels::kUnitOutputs; }
  int terms() const { return terms_; }
  int units() const { return units_; }
  int segments() const { return segments_; }
  /// Terms of segment `segment` that exist; the last may have fewer.
  int segment_terms(int segment) const;
  /// Terms per segment in memory, a multiple of 32; also the distance between segments in a row of activations.
  int segment_stride() const { return segment_stride_; }
  /// Elements of one unit of one segment.
  int64_t unit_elements() const { return kernels::unit_elements(segment_stride_); }

  int nodes() const { return static_cast<int>(shards_.size()); }
  const UnitSplit& split() const { return split_; }
  const Shard& shard(int node) const { return shards_[node]; }
  int64_t shard_bytes(int node) const;
  /// Of one copy, on all nodes together.
  int64_t bytes() const { return int64_t{units_} * segments_ * unit_elements() * static_cast<int64_t>(sizeof(bf16)); }
  /// Gives a shard its memory: shard_bytes(node), 64-byte aligned.
  void place(int node, bf16* data) { shards_[node].data = data; }

  /// First element of `unit` (a number within the whole matrix) of `segment`. REQUIRES: node holds that unit.
  bf16* unit(int node, int segment, int64_t unit) const {
    const Shard& shard = shards_[node];
    return shard.data + (segment * shard.units.count() + (unit - shard.units.begin)) * unit_elements();
  }
  /// A node that holds `unit`.
  int node_of(int64_t unit) const;
  /// Output `output` as a row: out[0..terms). For embeddings.
  void read_output(int output, bf16* out) const;

 private:
  int outputs_ = 0, terms_ = 0, units_ = 0, segments_ = 0, full_segment_ = 0, segment_stride_ = 0;
  UnitSplit split_;
  std::vector<Shard> shards_;
};

/// A float32 vector with a copy on every node: norms, biases. Immutable after loading; owns no memory; safe to read
/// from all threads.
class ReplicatedVector {
 public:
  /// Empty: size() == 0.
  ReplicatedVector() = default;
  /// Copies have no memory yet.
  ReplicatedVector(int size, int nodes) : size_(size), copies_(nodes, nullptr) {}

  int size() const { return size_; }
  bool empty() const { return size_ == 0; }
  int nodes() const { return static_cast<int>(copies_.size()); }
  /// Of one copy.
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(float)); }
  /// Gives a copy its memory: bytes(), 64-byte aligned.
  void place(int node, float* data) { copies_[node] = data; }
  std::span<float> on(int node) const { return {copies_[node], static_cast<size_t>(size_)}; }

 private:
  int size_ = 0;
  std::vector<float*> copies_;  // [nodes]
};

/// A run of consecutive rows of a checkpoint tensor that become consecutive outputs.
struct RowRun {
  int tensor = 0;  ///< index into WeightSpec::tensors, or -1 for rows of zeros
  int first = 0;   ///< row of the tensor
  int count = 0;
  int output = 0;  ///< of the first row; runs are in ascending order of outputs, without gaps
};

/// A tensor as the checkpoint must have it.
struct TensorSpec {
  std::string name;  ///< "model.layers.0.self_attn.q_proj.weight"
  std::vector<int64_t> shape;
};

/// One matrix or vector of the model: which checkpoint tensors it is made of, in which order of outputs, and where it
/// goes. Exactly one of matrix and vector is set.
struct WeightSpec {
  std::string purpose;  ///< "attention", "experts", ...: the rows of the plan's table
  std::vector<TensorSpec> tensors;
  /// In order of outputs; elements of the tensors for vectors. Views the model. Empty: the only tensor as it is.
  std::span<const RowRun> outputs;
  PackedMatrix* matrix = nullptr;
  ReplicatedVector* vector = nullptr;  ///< converted to float32
  int layer = -1;                      ///< that it belongs to; -1: to none
  int expert = -1;                     ///< of the layer; -1: to none
};

/// Called for every weight in the order of use.
using WeightVisitor = std::function<void(const WeightSpec&)>;

}  // namespace cpuinfer::model
