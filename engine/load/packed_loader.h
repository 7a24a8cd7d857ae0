// From a packed file to the nodes' memory: reading and checking, no packing.
#pragma once

#include <span>

#include "base/result.h"
#include "engine/load/loader.h"
#include "engine/load/packed_file.h"
#include "engine/load/packed_layout.h"
#include "numa/team.h"
#include "numa/topology.h"

namespace cpuinfer::load {

/// Fills the weights of some parts, which have their memory. As read_weights with at least kLeastLoaders workers: each
/// keeps several reads of its node's units in flight, straight into the node's memory where offsets and sizes are whole
/// pages, and hashes what has arrived. Parts whose digest is another are an error. options: as of read_weights;
/// statistics say "packing" for hashing and copying. REQUIRES: layout = file.layout_for(the model); team.nodes() is the
/// model's number of nodes. Errors: kBadInput (damaged, names the part), kDoesNotFit (a buffer), kRuntime (I/O, with
/// file and offset), kInterrupted.
Result<void> read_packed(const PackedFile& file, const PackedLayout& layout, std::span<const PackedPart> parts,
                         numa::Team& team, const numa::Topology& topology, const LoadOptions& options = {});

}  // namespace cpuinfer::load
