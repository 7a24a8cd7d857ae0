// Weights that are made in memory: for benchmarks of models whose checkpoint is not at hand.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>

#include "base/result.h"
#include "base/types.h"
#include "engine/load/loader.h"
#include "engine/model/model.h"
#include "numa/team.h"
#include "numa/topology.h"

namespace cpuinfer::load {

/// Number n of stream `key`, 64 bits. SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
/// 2014). Pure.
constexpr uint64_t random_bits(uint64_t key, uint64_t n) {
  uint64_t z = key + (n + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// Fills `out` with numbers around zero, the same for the same key: either sign, a random mantissa, and one of four
/// exponents: magnitudes from 2^(exponent-3) to 2^(exponent+1), standard deviation 0.88 * 2^exponent. Never zero, never
/// subnormal. Several GB/s on one core. REQUIRES: -120 <= exponent <= 120; out.size() is a multiple of 4.
void fill_random(uint64_t key, int exponent, std::span<bf16> out);

/// The exponent for fill_random that keeps the size of activations over a sum of `terms` products.
int exponent_for_terms(int64_t terms);

/// The random weights of a model, some after others: each weight has the numbers that it has in fill_synthetic. Views
/// the model.
class SyntheticWeights {
 public:
  SyntheticWeights(model::Model& model, uint64_t seed);
  /// Fills matrices and vectors that have their memory, every worker its own share. REQUIRES: of the model;
  /// team.nodes() is its number of nodes. Errors: kInterrupted.
  Result<void> fill(std::span<const model::WeightSpec> specs, numa::Team& team, const LoadOptions& options) const;

 private:
  std::unordered_map<const model::PackedMatrix*, uint64_t> keys_;
};

/// Allocates all weights on their nodes and fills them with random numbers, every worker its own share: matrices with a
/// standard deviation near 1 / sqrt(terms) (the embedding near 1), norms with 1, biases with 0. Padding is zero, as
/// the loader leaves it. The same seed gives the same weights for any number of threads and nodes.
/// options: progress in bytes of packed weights; cancel. Nothing is read or written on disk.
/// REQUIRES: team.nodes() is the model's number of nodes. Errors: kDoesNotFit, kInterrupted.
Result<WeightMemory> fill_synthetic(model::Model& model, uint64_t seed, numa::Team& team,
                                    const numa::Topology& topology, const LoadOptions& options = {});

}  // namespace cpuinfer::load
