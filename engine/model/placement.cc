#include "engine/model/placement.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace cpuinfer::model {

UnitSplit UnitSplit::sliced(std::span<const int64_t> shares) {
  UnitSplit split;
  split.shares_.assign(shares.begin(), shares.end());
  return split;
}

UnitSplit UnitSplit::whole(int node, int nodes) {
  UnitSplit split;
  split.shares_.assign(nodes, 0);
  split.shares_[node] = 1;
  return split;
}

UnitSplit UnitSplit::replicated(int nodes) {
  UnitSplit split;
  split.shares_.assign(nodes, 1);
  split.replicated_ = true;
  return split;
}

numa::Range UnitSplit::units(int64_t count, int node) const {
  return replicated_ ? numa::Range{0, count} : numa::split(count, shares_, node);
}

Placement Placement::even(int nodes) { return {.node_shares = std::vector<int64_t>(nodes, 1), .expert_nodes = {}}; }

std::vector<int> balance_experts(int experts, int nodes, std::span<const double> usage) {
  ENSURE(usage.empty() || static_cast<int>(usage.size()) == experts, "usage has a number for each expert");
  std::vector<int> order(experts);
  std::iota(order.begin(), order.end(), 0);
  if (!usage.empty()) std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return usage[a] > usage[b]; });
  // Equal numbers first, since memory is what is short: experts are dealt in rounds of one for each node.
  std::vector<int> nodes_of(experts);
  std::vector<double> load(nodes, 0);
  std::vector<int> count(nodes, 0);
  for (int i = 0; i < experts; ++i) {
    const int round = i / nodes;
    int best = -1;
    for (int node = 0; node < nodes; ++node)
      if (count[node] == round && (best < 0 || load[node] < load[best])) best = node;
    nodes_of[order[i]] = best;
    ++count[best];
    load[best] += usage.empty() ? 1.0 : usage[order[i]];
  }
  return nodes_of;
}

KvStripes::KvStripes(int kv_heads, int nodes)
    : kv_heads_(kv_heads), nodes_(nodes), stripes_(nodes / std::gcd(kv_heads, nodes)) {}

int KvStripes::node(int kv_head, int stripe) const {
  if (kv_heads_ % nodes_ == 0) return kv_head / (kv_heads_ / nodes_);
  if (nodes_ % kv_heads_ == 0) return kv_head * (nodes_ / kv_heads_) + stripe;
  return (stripe * kv_heads_ + kv_head) % nodes_;
}

numa::Range KvStripes::heads_of(int node) const {
  ENSURE(stripes_ == 1, "only then a head lies on one node");
  const int64_t heads = kv_heads_ / nodes_;
  return {node * heads, (node + 1) * heads};
}

}  // namespace cpuinfer::model
