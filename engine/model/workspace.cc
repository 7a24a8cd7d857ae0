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

void Workspace::lay_out(const ModelConfig& config, int worker_count, Layout& layout) {
  const int64_t rows = limits.rows;
  const int group = config.heads / config.kv_heads;
  const bool any_moe = std::find(config.moe_layers.begin(), config.moe_layers.end(), true) != config.moe_layers.end();
  const bool any_dense =
      std::find(config.moe_layers.begin(), config.moe_layers.end(), false) != config.moe_layers.end();

  residual = layout.take_rows<float>(rows, config.hidden);
  normed = layout.take_rows<bf16>(rows, config.hidden);
  qkv = layout.take_rows<float>(rows, int64_t{config.heads + 2 * config.kv_heads} * config.head_dim);
  queries = layout.take_rows<bf16>(rows * config.heads, config.head_dim);
  attention = layout.take_rows<bf16>(rows, int64_t{config.kv_heads} * round_up(group * config.head_dim, 32));
  if (any_moe) {
    router_logits = layout.take_rows<float>(rows, config.experts);
    chosen = layout.take_chosen(rows, config);
    slots = layout.take_slots(rows, config);
  }
  if (any_dense) gate_up = layout.take_rows<float>(rows, 2 * int64_t{round_up(config.intermediate, 8)});
  // Dense and MoE layers take turns with one buffer: rows of the wider kind.
  const int64_t moe_elements = any_moe ? rows * config.experts_per_token * round_up(config.moe_intermediate, 32) : 0;
  const int64_t dense_elements = any_dense ? rows * round_up(config.intermediate, 32) : 0;
  intermediate = {layout.take<bf16>(std::max(moe_elements, dense_elements)), 0};
  cos = layout.take_rows<float>(rows, config.head_dim / 2);
  sin = layout.take_rows<float>(rows, config.head_dim / 2);
  const int64_t superblocks = limits.context_tokens / kSuperblockTokens + 2 * int64_t{limits.sequences};
  const int64_t partials = superblocks * kFewRows * config.heads;
  partial_max = layout.take<float>(partials);
  partial_sum = layout.take<float>(partials);
  partial_out = layout.take_rows<float>(partials, config.head_dim);
  final_normed = layout.take_rows<bf16>(limits.logit_rows, config.hidden);
  logits = layout.take_rows<float>(limits.logit_rows, config.vocab);

  const int64_t attention_rows = std::max(kRowBlock, kFewRows * group);
  workers.resize(worker_count);
  for (WorkerScratch& scratch : workers) {
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

int64_t Workspace::bytes(const ModelConfig& config, const StepLimits& limits, int workers) {
  Layout layout(nullptr);
  Workspace workspace;
  workspace.limits = limits;
  workspace.lay_out(config, workers, layout);
  return layout.used_bytes();
}

Result<Workspace> Workspace::create(const ModelConfig& config, const StepLimits& limits, int workers,
                                    const numa::Topology& topology) {
  Workspace workspace;
  workspace.limits = limits;
  TRY_ASSIGN(workspace.memory_, numa::NodeBuffer::allocate(bytes(config, limits, workers), 0, topology));
  Layout layout(workspace.memory_.data());
  workspace.lay_out(config, workers, layout);
  return workspace;
}

}  // namespace cpuinfer::model
