// The identity of a model's weights: one number for all of their bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "engine/model/model.h"
#include "engine/storage/digest.h"
#include "numa/team.h"

namespace cpuinfer::load {

/// What a weight is called where each has a line of its own: the first of its tensors.
inline const std::string& weight_name(const model::WeightSpec& spec) { return spec.tensors.front().name; }

/// What one piece adds to a fingerprint: a unit of a matrix, number segment * units() + unit, or number 0 of a vector.
storage::Digest128 piece_digest(std::string_view weight, int64_t number, std::span<const std::byte> bytes);

/// The sum of piece_digest over all units of all segments of all matrices and over all vectors, of copies on several
/// nodes once: the same for any number of nodes and workers and any placement, and different if a bit of a weight is.
/// All workers read their own node's memory, at about its speed. REQUIRES: all weights are in memory; team.nodes() is
/// the model's number of nodes.
storage::Digest128 fingerprint_weights(model::Model& model, numa::Team& team);

}  // namespace cpuinfer::load
