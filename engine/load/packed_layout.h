// Where each weight of a model lies in its packed file: known from config.json alone.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "engine/storage/digest.h"

namespace cpuinfer::load {

/// One matrix or vector. A matrix is stored as it lies in memory on one node: [segments][units], every unit; a vector
/// as float32.
struct PackedWeight {
  model::WeightSpec spec;
  int64_t offset = 0;  ///< from the beginning of the data
  int64_t bytes = 0;
};

/// What is read, checked and held together: the norms and biases of all layers, the attention of a layer, an expert
/// (gate and up, then down, without a gap), an MLP, a router, the embedding, lm_head.
struct PackedPart {
  std::string name;     ///< "layer 3 expert 17"
  std::string purpose;  ///< as of its weights
  int layer = -1, expert = -1;
  int64_t offset = 0;  ///< from the beginning of the data, a multiple of kPackedAlignment
  int64_t bytes = 0;
  size_t first_weight = 0, weight_count = 0;
  storage::Digest128 digest;  ///< the sum of piece_digest over its pieces; of a file only
};

/// Of parts in the file: what O_DIRECT asks for.
inline constexpr int64_t kPackedAlignment = 4096;

struct PackedLayout {
  std::vector<PackedWeight> weights;
  std::vector<PackedPart> parts;  ///< in the order of their places: norms and biases, then in the order of use
  int64_t bytes = 0;              ///< of all, a multiple of kPackedAlignment

  std::span<const PackedWeight> weights_of(const PackedPart& part) const {
    return std::span(weights).subspan(part.first_weight, part.weight_count);
  }
};

/// Views the model; needs no memory of its weights. The same for every placement.
PackedLayout lay_out_packed(model::Model& model);

}  // namespace cpuinfer::load
