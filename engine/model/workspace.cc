#include "engine/model/workspace.h"

#include <algorithm>

#include "kernels/kernels.h"

namespace cpuinfer::model {

// Hands out cache-line aligned pieces; with base == nullptr it only counts.
class Workspace::Layout {
 public:
  explicit Layout(std::byte* base) : base_(base) {}
  int64_t used_bytes() const { return used_; }

  template <typename T>
  T* take(int64_t count) {
    T* const piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), kLineBytes);
    return piece;
  }
  template <typename T>
  Rows<T> take_rows(int64_t rows, int64_t width) {
    const int64_t stride = round_up(width, kLineBytes / static_cast<int64_t>(sizeof(T)));
    return {take<T>(rows * stride), stride};
  }
  PartialRows take_partials(int64_t rows, int64_t width) {
    return {take<float>(rows), take<float>(rows), take_rows<float>(rows, width)};
  }
  ChosenExperts take_chosen(int64_t rows, const ModelConfig& config) {
    return {take_rows<int32_t>(rows, config.experts_per_token), take_rows<float>(rows, config.experts_per_token)};
  }
  ExpertSlots take_slots(int64_t rows, const ModelConfig& config) {
    const int64_t slots = rows * config.experts_per_token;
    return {take<int32_t>(config.experts + 1), take<int32_t>(slots), take<float>(slots)};
  }

 private:
  static constexpr int64_t kLineBytes = 64;
  std::byte* base_;
  int64_t used_ = 0;
};

namespace {

bool any_layer(const ModelConfig& config, bool moe) {
  return std::find(config.moe_layers.begin(), config.moe_layers.end(), moe) != config.moe_layers.end();
}

int64_t attention_width(const ModelConfig& config) {
  return int64_t{config.kv_heads} * round_up(config.heads / config.kv_heads * config.head_dim, 32);
}

// Dense and MoE layers take turns with one buffer: rows of the wider kind.
int64_t intermediate_elements(const ModelConfig& config, int64_t rows) {
  const int64_t moe =
      any_layer(config, true) ? rows * config.experts_per_token * round_up(config.moe_intermediate, 32) : 0;
  const int64_t dense = any_layer(config, false) ? rows * round_up(config.intermediate, 32) : 0;
  return std::max(moe, dense);
}

}  // namespace

void Workspace::lay_out_shared(const ModelConfig& config, const Placement& placement, Layout& layout) {
  const int64_t rows = limits.rows;
  residual = layout.take_rows<float>(rows, config.hidden);
  qkv = layout.take_rows<float>(rows, int64_t{config.heads + 2 * config.kv_heads} * config.head_dim);
  queries = layout.take_rows<bf16>(rows * config.heads, config.head_dim);
  attention = layout.take_rows<bf16>(rows, attention_width(config));
  if (any_layer(config, false)) gate_up = layout.take_rows<float>(rows, 2 * int64_t{round_up(config.intermediate, 8)});
  intermediate = layout.take<bf16>(intermediate_elements(config, rows));
  if (placement.whole_experts())
    expert_outputs = layout.take_rows<float>(rows * config.experts_per_token, config.hidden);
  cos = layout.take_rows<float>(rows, config.head_dim / 2);
  sin = layout.take_rows<float>(rows, config.head_dim / 2);
  const int64_t superblocks = limits.context_tokens / kSuperblockTokens + 2 * int64_t{limits.sequences};
  const int64_t partials = (superblocks * kFewRows + (limits.cold_pages ? int64_t{limits.rows} : 0)) * config.heads;
  partial_max = layout.take<float>(partials);
  partial_sum = layout.take<float>(partials);
  partial_out = layout.take_rows<float>(partials, config.head_dim);
  logits = layout.take_rows<float>(limits.logit_rows, config.vocab);
  if (any_layer(config, true)) expert_counts = layout.take<int64_t>(int64_t{config.layers} * config.experts);
}

void Workspace::lay_out_node(const ModelConfig& config, const Placement& placement, int node,
                             std::span<const int> worker_nodes, Layout& layout) {
  const int64_t rows = limits.rows;
  const int group = config.heads / config.kv_heads;
  const bool any_moe = any_layer(config, true);

  NodeActivations& own = nodes[node];
  own.normed = layout.take_rows<bf16>(rows, config.hidden);
  own.final_normed = layout.take_rows<bf16>(limits.logit_rows, config.hidden);
  if (any_moe) {
    own.router_logits = layout.take_rows<float>(rows, config.experts);
    own.chosen = layout.take_chosen(rows, config);
    own.slots = layout.take_slots(rows, config);
  }
  own.attention = attention;
  own.intermediate = intermediate;
  if (placement.nodes() > 1) {
    own.attention = layout.take_rows<bf16>(rows, attention_width(config));
    own.intermediate = layout.take<bf16>(intermediate_elements(config, rows));
  }

  const int64_t attention_rows = std::max(kRowBlock, kFewRows * group);
  for (size_t rank = 0; rank < worker_nodes.size(); ++rank) {
    if (worker_nodes[rank] != node) continue;
    WorkerScratch& scratch = workers[rank];
    scratch.block = layout.take_rows<float>(kRowBlock, kBlockOutputs);
    scratch.scores = layout.take_rows<float>(attention_rows, kernels::kLeafTokens);
    scratch.probs = layout.take_rows<bf16>(attention_rows, kernels::kLeafTokens);
    scratch.leaf = layout.take_partials(attention_rows, config.head_dim);
    scratch.superblock = layout.take_partials(attention_rows, config.head_dim);
    scratch.total = layout.take_partials(attention_rows, config.head_dim);
    scratch.row_numbers = layout.take<int32_t>(attention_rows);
    scratch.queries = layout.take_rows<bf16>(int64_t{kFewRows} * group, config.head_dim);
    scratch.head = layout.take<bf16>(round_up(config.head_dim, 32));
    scratch.embedding = layout.take<bf16>(config.hidden);
    scratch.normed = layout.take_rows<bf16>(kFewRows, config.hidden);
    if (any_moe) {
      scratch.router = layout.take<float>(config.experts);
      scratch.chosen = layout.take_chosen(kFewRows, config);
      scratch.slots = layout.take_slots(kFewRows, config);
      scratch.used_experts = layout.take<int32_t>(config.experts);
    }
  }
}

std::vector<int64_t> Workspace::node_bytes(const ModelConfig& config, const StepLimits& limits,
                                           const Placement& placement, std::span<const int> worker_nodes) {
  Workspace workspace;
  workspace.limits = limits;
  workspace.nodes.resize(placement.nodes());
  workspace.workers.resize(worker_nodes.size());
  Layout shared(nullptr);
  workspace.lay_out_shared(config, placement, shared);
  std::vector<int64_t> bytes = numa::spread_bytes(shared.used_bytes(), placement.nodes());
  for (int node = 0; node < placement.nodes(); ++node) {
    Layout layout(nullptr);
    workspace.lay_out_node(config, placement, node, worker_nodes, layout);
    bytes[node] += layout.used_bytes();
  }
  return bytes;
}

Result<Workspace> Workspace::create(const ModelConfig& config, const StepLimits& limits, const Placement& placement,
                                    std::span<const int> worker_nodes, const numa::Topology& topology) {
  Workspace workspace;
  workspace.limits = limits;
  workspace.nodes.resize(placement.nodes());
  workspace.workers.resize(worker_nodes.size());
  // Each part is laid out twice: to count, and to hand out.
  Layout shared_size(nullptr);
  workspace.lay_out_shared(config, placement, shared_size);
  TRY_ASSIGN(numa::NodeBuffer shared,
             numa::NodeBuffer::allocate_spread(shared_size.used_bytes(), placement.nodes(), topology));
  Layout shared_layout(shared.data());
  workspace.lay_out_shared(config, placement, shared_layout);
  workspace.memory_.push_back(std::move(shared));
  for (int node = 0; node < placement.nodes(); ++node) {
    Layout size(nullptr);
    workspace.lay_out_node(config, placement, node, worker_nodes, size);
    TRY_ASSIGN(numa::NodeBuffer own, numa::NodeBuffer::allocate(size.used_bytes(), node, topology));
    Layout layout(own.data());
    workspace.lay_out_node(config, placement, node, worker_nodes, layout);
    workspace.memory_.push_back(std::move(own));
  }
  return workspace;
}

}  // namespace cpuinfer::model
