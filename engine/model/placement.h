// Which node holds which part of a model: pure data, decided before any memory is taken (docs/memory.md).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "numa/shard.h"

namespace cpuinfer::model {

/// How the units of one matrix are dealt to the nodes.
class UnitSplit {
 public:
  UnitSplit() = default;
  /// Contiguous pieces in proportion to `shares` [nodes].
  static UnitSplit sliced(std::span<const int64_t> shares);
  /// All on one node.
  static UnitSplit whole(int node, int nodes);
  /// A copy on every node.
  static UnitSplit replicated(int nodes);

  int nodes() const { return static_cast<int>(shares_.size()); }
  bool is_replicated() const { return replicated_; }
  /// Those of `count` units that `node` holds.
  numa::Range units(int64_t count, int node) const;

 private:
  std::vector<int64_t> shares_;  // [nodes]
  bool replicated_ = false;
};

/// Where the parts of a model go. Whatever it says, the bits of every result are the same.
struct Placement {
  /// [nodes] relative sizes of the slices of every matrix.
  std::vector<int64_t> node_shares;
  /// [layers][experts] the node of each expert; empty: experts are sliced like all other matrices. Layers without
  /// experts have an empty list.
  std::vector<std::vector<int>> expert_nodes;

  /// Slices of equal size.
  static Placement even(int nodes);
  int nodes() const { return static_cast<int>(node_shares.size()); }
  bool whole_experts() const { return !expert_nodes.empty(); }

  UnitSplit sliced() const { return UnitSplit::sliced(node_shares); }
  UnitSplit replicated() const { return UnitSplit::replicated(nodes()); }
  UnitSplit expert(int layer, int expert) const {
    return whole_experts() ? UnitSplit::whole(expert_nodes[layer][expert], nodes()) : sliced();
  }
};

/// Nodes for the experts of one layer, so that nodes get equal numbers of experts (or differ by one) and, as far as
/// that allows, equal parts of `usage` [experts], how often each is chosen: the busiest first, each to the node with
/// the least so far. Empty usage: all are used alike.
std::vector<int> balance_experts(int experts, int nodes, std::span<const double> usage);

/// Which node holds the keys and values of a kv head, and so computes its attention. With as many nodes as heads or
/// fewer, where that divides, a head lies on one node, neighbours together. Otherwise the superblocks of a sequence
/// take turns: superblock j is in stripe (j + a start) mod stripes, and a head has a node for each stripe.
class KvStripes {
 public:
  KvStripes(int kv_heads, int nodes);

  int kv_heads() const { return kv_heads_; }
  int nodes() const { return nodes_; }
  int stripes() const { return stripes_; }
  int node(int kv_head, int stripe) const;
  /// The kv heads that lie on `node` alone. REQUIRES: stripes() == 1.
  numa::Range heads_of(int node) const;

 private:
  int kv_heads_, nodes_, stripes_;
};

}  // namespace cpuinfer::model
