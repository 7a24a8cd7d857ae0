#include "engine/model/qwen3.h"

#include <algorithm>

#include "base/format.h"

namespace cpuinfer::model {
namespace {

// Terms in one accumulation chain of the router: short chains let its few outputs keep many workers busy.
constexpr int kRouterSegmentTerms = 256;

struct Layer {
  ReplicatedVector attention_norm;        // [hidden]
  PackedMatrix qkv;                       // [kv_heads * (group + 2) * head_dim, hidden]
  ReplicatedVector qkv_bias;              // [outputs of qkv] or empty
  ReplicatedVector query_norm, key_norm;  // [head_dim]
  PackedMatrix output;                    // [hidden, heads * head_dim], a segment per kv head
  ReplicatedVector output_bias;           // [hidden] or empty
  ReplicatedVector mlp_norm;              // [hidden]
  // A mixture of experts ...
  PackedMatrix router;  // [experts, hidden]
  std::vector<Expert> experts;
  // ... or a dense MLP.
  Expert mlp;
};

// Appends a run after the last one.
void add_run(std::vector<RowRun>& runs, int tensor, int first, int count) {
  const int output = runs.empty() ? 0 : runs.back().output + runs.back().count;
  runs.push_back({tensor, first, count, output});
}

// q, k and v in the order [kv_heads][group q heads | k | v], so that all that belongs to a kv head is contiguous.
std::vector<RowRun> qkv_rows(const ModelConfig& config) {
  const int group = config.heads / config.kv_heads;
  std::vector<RowRun> runs;
  for (int h = 0; h < config.kv_heads; ++h) {
    add_run(runs, 0, h * group * config.head_dim, group * config.head_dim);
    add_run(runs, 1, h * config.head_dim, config.head_dim);
    add_run(runs, 2, h * config.head_dim, config.head_dim);
  }
  return runs;
}

// Gate and up in turns of 8 rows, so that a unit of 16 outputs holds both halves of 8 values of silu(gate) * up.
std::vector<RowRun> gate_up_rows(int intermediate) {
  std::vector<RowRun> runs;
  for (int first = 0; first < intermediate; first += 8) {
    const int count = std::min(8, intermediate - first);
    for (const int tensor : {0, 1}) {
      add_run(runs, tensor, first, count);
      if (count < 8) add_run(runs, -1, 0, 8 - count);
    }
  }
  return runs;
}

// Whether every node holds the outputs of qkv, a piece for each kv head, that its own kv heads need.
bool heads_on_nodes(const PackedMatrix& qkv, const KvStripes& stripes, int head_outputs) {
  if (stripes.stripes() != 1) return false;
  for (int node = 0; node < stripes.nodes(); ++node) {
    const numa::Range heads = stripes.heads_of(node);
    const numa::Range units = qkv.shard(node).units;
    if (heads.begin * head_outputs != units.begin * kernels::kUnitOutputs ||
        std::min<int64_t>(units.end * kernels::kUnitOutputs, qkv.outputs()) != heads.end * head_outputs)
      return false;
  }
  return true;
}

// The expert that the first slot goes to.
const Expert& first_expert(std::span<const Expert> experts, const ExpertSlots& slots) {
  size_t e = 0;
  while (e + 1 < experts.size() && slots.first[e + 1] == 0) ++e;
  return experts[e];
}

class Qwen3 final : public Model {
 public:
  Qwen3(const ModelConfig& config, const Placement& placement)
      : config_(config), whole_experts_(placement.whole_experts()), layers_(config.layers) {
    const int nodes = placement.nodes();
    const int group = config.heads / config.kv_heads;
    const int head_outputs = (group + 2) * config.head_dim;  // of qkv, for one kv head
    const auto expert = [&](int intermediate, const UnitSplit& split) {
      return Expert{PackedMatrix(2 * round_up(intermediate, 8), config.hidden, 0, split),
                    PackedMatrix(config.hidden, intermediate, 0, split)};
    };
    qkv_rows_ = qkv_rows(config);
    if (config.experts > 0) expert_rows_ = gate_up_rows(config.moe_intermediate);
    mlp_rows_ = gate_up_rows(config.intermediate);
    embedding_ = PackedMatrix(config.vocab, config.hidden, 0, placement.sliced());
    final_norm_ = ReplicatedVector(config.hidden, nodes);
    if (!config.tied_embeddings) lm_head_ = embedding_;
    for (int l = 0; l < config.layers; ++l) {
      Layer& layer = layers_[l];
      layer.attention_norm = layer.mlp_norm = ReplicatedVector(config.hidden, nodes);
      layer.query_norm = layer.key_norm = ReplicatedVector(config.head_dim, nodes);
      if (config.attention_bias) {
        layer.qkv_bias = ReplicatedVector(config.kv_heads * head_outputs, nodes);
        layer.output_bias = ReplicatedVector(config.hidden, nodes);
      }
      layer.qkv = PackedMatrix(config.kv_heads * head_outputs, config.hidden, 0, placement.sliced());
      layer.output =
          PackedMatrix(config.hidden, config.heads * config.head_dim, group * config.head_dim, placement.sliced());
      if (config.moe_layers[l]) {
        layer.router = PackedMatrix(config.experts, config.hidden, kRouterSegmentTerms, placement.replicated());
        for (int e = 0; e < config.experts; ++e)
          layer.experts.push_back(expert(config.moe_intermediate, placement.expert(l, e)));
      } else {
        layer.mlp = expert(config.intermediate, placement.sliced());
      }
    }
    qkv_on_nodes_ =
        config.layers > 0 && heads_on_nodes(layers_[0].qkv, KvStripes(config.kv_heads, nodes), head_outputs);
  }

  const ModelConfig& config() const override { return config_; }
  void set_experts_per_token(int experts) override { config_.experts_per_token = experts; }
  void visit_weights(const WeightVisitor& visitor) override;
  void set_weight_source(WeightSource* source) override { source_ = source; }
  Result<void> forward(const Runtime& runtime, const Batch& batch, KvCache& kv, Workspace& workspace) override;

 private:
  // False: its weights could not be had, and all workers leave the step.
  bool forward_layer(Lane& lane, const Batch& batch, int l, KvCache& kv, Workspace& ws);
  bool stream_experts(Lane& lane, int l, const ExpertSlots& slots, Rows<bf16> normed, Rows<bf16> own, bool few,
                      Workspace& ws);
  const PackedMatrix& lm_head() const { return config_.tied_embeddings ? embedding_ : lm_head_; }

  ModelConfig config_;
  bool whole_experts_;
  bool qkv_on_nodes_ = false;  // every node computes queries, keys and values of its own kv heads
  PackedMatrix embedding_;     // [vocab, hidden]
  std::vector<Layer> layers_;
  ReplicatedVector final_norm_;  // [hidden]
  PackedMatrix lm_head_;         // [vocab, hidden], empty if tied
  // Orders of outputs, shared by all layers.
  std::vector<RowRun> qkv_rows_, expert_rows_, mlp_rows_;
  AttentionPlan attention_plan_;    // of the step that runs
  WeightSource* source_ = nullptr;  // of weights that are not in memory
};

// ---------------------------------------------------------------------------------------------------------------------
// The forward pass.

Result<void> Qwen3::forward(const Runtime& runtime, const Batch& batch, KvCache& kv, Workspace& ws) {
  reserve_attention_plan(config_, ws.limits, kv.stripes().nodes(), attention_plan_);
  make_attention_plan(config_, batch, kv, attention_plan_);
  const int logit_rows = static_cast<int>(batch.logit_rows.size());

  if (source_ != nullptr) source_->begin_step(batch.rows());
  runtime.team.run([&](numa::Worker& worker) {
    Lane lane(worker, runtime.kernels, ws);
    rope_tables(lane, batch, ws.cos, ws.sin);
    embed(lane, batch.tokens, embedding_, ws.residual);
    lane.meet();
    for (int l = 0; l < config_.layers; ++l)
      if (!forward_layer(lane, batch, l, kv, ws)) return;
    if (logit_rows == 0) return;
    lane.begin(Phase::kLmHead);
    const Rows<bf16> normed = rms_norm(lane, ws.residual, batch.logit_rows.data(), logit_rows, final_norm_,
                                       config_.rms_eps, lane.node.final_normed);
    linear(lane, normed, logit_rows, lm_head(), {}, ws.logits);
    lane.meet();
  });
  return source_ != nullptr ? source_->end_step() : Result<void>{};
}

bool Qwen3::forward_layer(Lane& lane, const Batch& batch, int l, KvCache& kv, Workspace& ws) {
  const Layer& layer = layers_[l];
  const int rows = batch.rows();
  const bool few = rows <= kFewRows;
  const float eps = config_.rms_eps;

  // Attention.
  lane.begin(Phase::kQkv);
  if (source_ != nullptr && !lane.await_part(*source_, l, LayerPart::kAttention)) return false;
  Rows<bf16> normed = rms_norm(lane, ws.residual, nullptr, rows, layer.attention_norm, eps, lane.node.normed);
  linear(lane, normed, rows, layer.qkv, layer.qkv_bias, ws.qkv);
  qkv_on_nodes_ ? lane.meet_in_node() : lane.meet();

  lane.begin(Phase::kAttention);
  attention(lane, config_, batch, attention_plan_, l, {layer.query_norm, layer.key_norm, eps}, kv, ws);
  prefetch(lane, layer.output);
  lane.meet();

  lane.begin(Phase::kOutput);
  const Rows<bf16> attended = fetch(lane, ws.attention, rows, few, lane.node.attention);
  linear_add(lane, attended, rows, layer.output, layer.output_bias, ws.residual);
  prefetch(lane, config_.moe_layers[l] ? layer.router : layer.mlp.gate_up);
  lane.meet();

  // Mixture of experts, or MLP.
  const PackedMatrix& following = l + 1 < config_.layers ? layers_[l + 1].qkv : lm_head();
  if (config_.moe_layers[l]) {
    lane.begin(Phase::kRouter);
    normed = rms_norm(lane, ws.residual, nullptr, rows, layer.mlp_norm, eps, lane.node.normed);
    linear(lane, normed, rows, layer.router, {}, lane.node.router_logits);
    lane.meet_in_node();
    const ExpertSlots slots = route(lane, config_, rows, ws.expert_counts + int64_t{l} * config_.experts);

    const int64_t width = round_up(config_.moe_intermediate, kernels::kTileTerms);
    const Rows<bf16> own = {lane.node.intermediate, width};
    if (whole_experts_) {
      lane.begin(Phase::kGateUp);
      experts_gate_up(lane, config_, layer.experts, slots, normed, own);
      lane.meet_in_node();

      lane.begin(Phase::kDown);
      whole_experts_down(lane, layer.experts, slots, own, ws.expert_outputs, ws.residual);
    } else if (source_ != nullptr && source_->streams_experts()) {
      if (!stream_experts(lane, l, slots, normed, own, few, ws)) return false;
    } else {
      const Rows<bf16> hidden = {ws.intermediate, width};
      lane.begin(Phase::kGateUp);
      experts_gate_up(lane, config_, layer.experts, slots, normed, hidden);
      prefetch(lane, first_expert(layer.experts, slots).down);
      lane.meet();

      lane.begin(Phase::kDown);
      const int64_t slot_count = int64_t{rows} * config_.experts_per_token;
      experts_down(lane, layer.experts, slots, fetch(lane, hidden, slot_count, few, own), ws.residual);
    }
  } else {
    const int64_t width = round_up(config_.intermediate, kernels::kTileTerms);
    const Rows<bf16> hidden = {ws.intermediate, width};
    lane.begin(Phase::kGateUp);
    if (source_ != nullptr && !lane.await_part(*source_, l, LayerPart::kMlp)) return false;
    normed = rms_norm(lane, ws.residual, nullptr, rows, layer.mlp_norm, eps, lane.node.normed);
    linear(lane, normed, rows, layer.mlp.gate_up, {}, ws.gate_up);
    lane.meet();
    silu_mul(lane, ws.gate_up, rows, config_.intermediate, hidden);
    prefetch(lane, layer.mlp.down);
    lane.meet();

    lane.begin(Phase::kDown);
    linear_add(lane, fetch(lane, hidden, rows, few, {lane.node.intermediate, width}), rows, layer.mlp.down, {},
               ws.residual);
  }
  prefetch(lane, following);
  lane.meet();
  return true;
}

// Experts in rounds of some that are in memory together, ascending, so that what is added to the residual stream is
// added in the same order as ever.
bool Qwen3::stream_experts(Lane& lane, int l, const ExpertSlots& slots, Rows<bf16> normed, Rows<bf16> own, bool few,
                           Workspace& ws) {
  const std::span<const Expert> all = layers_[l].experts;
  const Rows<bf16> hidden = {ws.intermediate, own.stride};
  lane.begin(Phase::kGateUp);
  for (numa::Range round;;) {
    const std::optional<numa::Range> next = lane.next_experts(*source_, l, slots, round);
    if (!next) return false;
    if (next->count() == 0) return true;
    round = *next;
    const auto experts = all.subspan(static_cast<size_t>(round.begin), static_cast<size_t>(round.count()));
    const ExpertSlots some = {slots.first + round.begin, slots.rows, slots.weights};
    experts_gate_up(lane, config_, experts, some, normed, hidden);
    lane.meet();

    lane.begin(Phase::kDown);
    const int64_t first = slots.first[round.begin], count = slots.first[round.end] - first;
    const Rows<bf16> fetched = fetch(lane, {hidden[first], hidden.stride}, count, few, {own[first], own.stride});
    experts_down(lane, experts, some, {fetched.data - first * fetched.stride, fetched.stride}, ws.residual);
    lane.begin(Phase::kGateUp);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The weights.

WeightSpec whole_vector(const char* purpose, std::string name, int count, ReplicatedVector* vector) {
  return {purpose, {{std::move(name), {count}}}, {}, nullptr, vector};
}

WeightSpec whole_matrix(const char* purpose, std::string name, PackedMatrix* matrix) {
  return {purpose, {{std::move(name), {matrix->outputs(), matrix->terms()}}}, {}, matrix, nullptr};
}

void visit_mlp(const WeightVisitor& visitor, const char* purpose, const std::string& prefix, int intermediate,
               int hidden, std::span<const RowRun> gate_up_order, Expert& expert) {
  visitor({purpose,
           {{prefix + "gate_proj.weight", {intermediate, hidden}}, {prefix + "up_proj.weight", {intermediate, hidden}}},
           gate_up_order,
           &expert.gate_up,
           nullptr});
  visitor(whole_matrix(purpose, prefix + "down_proj.weight", &expert.down));
}

void Qwen3::visit_weights(const WeightVisitor& visitor) {
  const ModelConfig& c = config_;
  visitor(whole_matrix(c.tied_embeddings ? "embedding and lm_head" : "embedding", "model.embed_tokens.weight",
                       &embedding_));
  for (int l = 0; l < c.layers; ++l) {
    Layer& layer = layers_[l];
    const std::string prefix = format("model.layers.{}.", l);
    const std::string attention = prefix + "self_attn.";
    int expert = -1;
    const WeightVisitor visit = [&](WeightSpec spec) {
      spec.layer = l;
      spec.expert = expert;
      visitor(spec);
    };
    visit(whole_vector("norms and biases", prefix + "input_layernorm.weight", c.hidden, &layer.attention_norm));
    const auto qkv_tensors = [&](const char* kind, bool matrix) {
      std::vector<TensorSpec> tensors;
      for (const auto& [name, heads] :
           {std::pair{"q_proj.", c.heads}, {"k_proj.", c.kv_heads}, {"v_proj.", c.kv_heads}}) {
        std::vector<int64_t> shape = {int64_t{heads} * c.head_dim};
        if (matrix) shape.push_back(c.hidden);
        tensors.push_back({attention + name + kind, shape});
      }
      return tensors;
    };
    visit({"attention", qkv_tensors("weight", true), qkv_rows_, &layer.qkv, nullptr});
    if (c.attention_bias) visit({"norms and biases", qkv_tensors("bias", false), qkv_rows_, nullptr, &layer.qkv_bias});
    visit(whole_vector("norms and biases", attention + "q_norm.weight", c.head_dim, &layer.query_norm));
    visit(whole_vector("norms and biases", attention + "k_norm.weight", c.head_dim, &layer.key_norm));
    visit(whole_matrix("attention", attention + "o_proj.weight", &layer.output));
    if (c.attention_bias)
      visit(whole_vector("norms and biases", attention + "o_proj.bias", c.hidden, &layer.output_bias));
    visit(whole_vector("norms and biases", prefix + "post_attention_layernorm.weight", c.hidden, &layer.mlp_norm));
    if (c.moe_layers[l]) {
      visit(whole_matrix("router", prefix + "mlp.gate.weight", &layer.router));
      for (expert = 0; expert < c.experts; ++expert)
        visit_mlp(visit, "experts", format("{}mlp.experts.{}.", prefix, expert), c.moe_intermediate, c.hidden,
                  expert_rows_, layer.experts[expert]);
    } else {
      visit_mlp(visit, "mlp", prefix + "mlp.", c.intermediate, c.hidden, mlp_rows_, layer.mlp);
    }
  }
  visitor(whole_vector("norms and biases", "model.norm.weight", c.hidden, &final_norm_));
  if (!c.tied_embeddings) visitor(whole_matrix("lm_head", "lm_head.weight", &lm_head_));
}

}  // namespace

std::unique_ptr<Model> create_qwen3(const ModelConfig& config, const Placement& placement) {
  return std::make_unique<Qwen3>(config, placement);
}

}  // namespace cpuinfer::model
