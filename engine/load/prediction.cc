#include "engine/load/prediction.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>

#include "base/check.h"

namespace cpuinfer::load {
namespace {

using model::PackedMatrix;
using model::WeightSpec;

/// Adds up the phases of one step.
class Step {
 public:
  Step(const PlanRequest& request, const MachineSpeed& speed) : speed_(speed), workers_(request.nodes(), 0) {
    for (const int node : request.worker_nodes) ++workers_[node];
  }
  int nodes() const { return static_cast<int>(workers_.size()); }
  /// The node that reads most slowly if cores limit it.
  int smallest_node() const { return static_cast<int>(std::ranges::min_element(workers_) - workers_.begin()); }

  /// A phase in which node n reads bytes[n] in pieces of piece_bytes that workers take whole.
  void read(std::span<const double> bytes, double piece_bytes) {
    double slowest = 0;
    for (int node = 0; node < nodes(); ++node) {
      all_bytes_ += bytes[node];
      slowest = std::max(slowest, seconds(bytes[node], piece_bytes, workers_[node]));
    }
    reading_ += slowest;
  }
  /// Activations that all nodes need and each finds on all of them alike.
  void fetch(double bytes) {
    if (speed_.remote_bandwidth > 0) fetching_ += bytes * (nodes() - 1) / nodes() / speed_.remote_bandwidth;
  }
  void meet(int times) { meeting_ += times * speed_.meeting_seconds; }
  void meet_in_node(int times) { meeting_ += times * speed_.node_meeting_seconds; }

  DecodePrediction result(int64_t context) const {
    const double ideal = all_bytes_ / (speed_.node_bandwidth * nodes());
    return {.context_tokens = context,
            .bytes = all_bytes_,
            .seconds = reading_ + fetching_ + meeting_,
            .reading_seconds = reading_,
            .meeting_seconds = meeting_,
            .bandwidth_share = ideal / reading_};
  }

 private:
  /// As long as every worker has a piece they share the node's bandwidth; those that have the last ones may be too few
  /// to use all of it.
  double seconds(double bytes, double piece_bytes, int workers) const {
    const double round = piece_bytes * workers;
    const double in_rounds = std::floor(bytes / round + 1e-9) * round;
    const double rest = std::max(bytes - in_rounds, 0.0);
    const double core = speed_.core_bandwidth;
    const double node = core > 0 ? std::min(speed_.node_bandwidth, workers * core) : speed_.node_bandwidth;
    if (rest < 1) return in_rounds / node;
    return in_rounds / node + std::max(rest / node, core > 0 ? std::min(rest, piece_bytes) / core : 0);
  }

  MachineSpeed speed_;
  std::vector<int> workers_;  // [nodes]
  double all_bytes_ = 0, reading_ = 0, fetching_ = 0, meeting_ = 0;
};

double unit_bytes(const PackedMatrix& matrix) {
  return static_cast<double>(matrix.unit_elements()) * matrix.segments() * sizeof(bf16);
}

/// The bytes of `matrix` on each node, times `factor`.
std::vector<double> node_bytes(const PackedMatrix& matrix, double factor = 1) {
  std::vector<double> bytes;
  for (int node = 0; node < matrix.nodes(); ++node)
    bytes.push_back(factor * static_cast<double>(matrix.shard_bytes(node)));
  return bytes;
}

/// How many experts of one layer each node holds.
std::vector<int> experts_on_nodes(std::span<const PackedMatrix* const> experts, int nodes) {
  std::vector<int> count(nodes, 0);
  for (const PackedMatrix* expert : experts) ++count[expert->node_of(0)];
  return count;
}

/// The gate/up, or the down, of the experts of one layer that a token uses. piece_bytes: if they are sliced.
/// most: of the chosen experts on one node, if they are whole.
void read_experts(Step& step, const PackedMatrix& expert, int chosen, double piece_bytes, std::optional<double> most) {
  if (!most) return step.read(node_bytes(expert, chosen), piece_bytes);
  // The node with the most of them decides; all others are done before.
  const double unit = unit_bytes(expert), one = unit * expert.units();
  std::vector<double> bytes(step.nodes(), step.nodes() > 1 ? one * (chosen - *most) / (step.nodes() - 1) : 0);
  bytes[step.smallest_node()] = one * *most;
  step.read(bytes, unit);
}

/// All weights of a step, in the order of use, and the meetings and fetches that do not depend on the context.
void add_weights(Step& step, const PlannedModel& planned) {
  const model::ModelConfig& config = planned.model->config();
  const bool whole = planned.placement.whole_experts();
  const int chosen = config.experts_per_token;
  std::map<std::vector<int>, double> known;  // expected_most_experts; layers are mostly alike
  std::vector<const PackedMatrix*> gate_ups, downs;
  planned.model->visit_weights([&](const WeightSpec& spec) {
    if (spec.matrix == nullptr || spec.purpose == "embedding") return;  // one row of it
    // Of a copy on every node, each node reads its own.
    if (spec.purpose != "experts") return step.read(node_bytes(*spec.matrix), unit_bytes(*spec.matrix));
    // Gate and up, then down, expert by expert.
    (gate_ups.size() == downs.size() ? gate_ups : downs).push_back(spec.matrix);
    if (static_cast<int>(downs.size()) < config.experts) return;
    std::optional<double> most;
    if (whole) {
      const std::vector<int> count = experts_on_nodes(downs, step.nodes());
      const auto [entry, fresh] = known.try_emplace(count, 0.0);
      if (fresh) entry->second = expected_most_experts(count, chosen);
      most = entry->second;
    }
    read_experts(step, *gate_ups[0], chosen, unit_bytes(*gate_ups[0]), most);
    // Sliced, a worker adds up the outputs of all chosen experts: they are one piece.
    read_experts(step, *downs[0], chosen, unit_bytes(*downs[0]) * chosen, most);
    gate_ups.clear();
    downs.clear();
  });
  step.meet(2);  // the embedding, the logits
  for (int layer = 0; layer < config.layers; ++layer) {
    // What Qwen3::forward_layer waits for, without attention.
    const double hidden_row = 4.0 * config.hidden;
    step.meet(2);  // the output of attention, that of the layer
    if (!config.moe_layers[layer]) {
      step.meet(2);
      step.fetch(2 * hidden_row + 2.0 * config.intermediate);
    } else if (whole) {
      // A node needs its columns of the outputs of all chosen experts.
      step.meet_in_node(2);
      step.meet(1);
      step.fetch(2 * hidden_row + chosen * hidden_row / step.nodes());
    } else {
      step.meet_in_node(1);
      step.meet(1);
      step.fetch(2 * hidden_row + 2.0 * chosen * config.moe_intermediate);
    }
  }
}

/// The attention of all layers: keys and values, and what depends on where they lie.
void add_attention(Step& step, const model::ModelConfig& config, int64_t context) {
  const model::KvStripes stripes(config.kv_heads, step.nodes());
  const bool in_node = stripes.stripes() == 1;  // heads on one node each: neither they nor their partials cross
  const double page_bytes = static_cast<double>(model::KvCache::page_bytes(config)) / config.layers;
  const double superblock = page_bytes / config.kv_heads * model::kSuperblockTokens / kernels::kLeafTokens;
  std::vector<double> bytes;
  for (const int64_t all : model::KvCache::node_bytes(config, model::KvCache::pages_for(context), step.nodes()))
    bytes.push_back(static_cast<double>(all) / config.layers);
  const bool merges = context >= model::kSuperblockTokens;  // with the new token more than one superblock
  for (int layer = 0; layer < config.layers; ++layer) {
    if (context > 0) step.read(bytes, superblock);
    const int of_heads = merges ? 2 : 1;  // q, k and v; partials
    in_node ? step.meet_in_node(of_heads) : step.meet(of_heads);
    step.meet(1);  // what all heads have found
    const double heads = 2.0 * config.heads * config.head_dim;
    step.fetch(heads + (in_node ? 0 : 4.0 * (config.heads + 2 * config.kv_heads) * config.head_dim));
  }
}

/// [k] the probability that k of `count` experts are chosen, each by itself with probability p.
std::vector<double> binomial(int count, double p, int most) {
  std::vector<double> probability(std::min(count, most) + 1);
  for (int k = 0; k < static_cast<int>(probability.size()); ++k) {
    const double log_choose = std::lgamma(count + 1.0) - std::lgamma(k + 1.0) - std::lgamma(count - k + 1.0);
    probability[k] = std::exp(log_choose + k * std::log(p) + (count - k) * std::log1p(-p));
  }
  return probability;
}

}  // namespace

double expected_most_experts(std::span<const int> node_experts, int chosen) {
  const int all = std::accumulate(node_experts.begin(), node_experts.end(), 0);
  ENSURE(chosen > 0 && chosen <= all, "experts are chosen from those that there are");
  // Drawing `chosen` of all is the same as choosing each by itself, given that it makes `chosen` in all.
  std::vector<std::vector<double>> on_node;
  for (const int count : node_experts) on_node.push_back(binomial(count, (chosen + 0.5) / (all + 1), chosen));
  const auto with_at_most = [&](int limit) {
    std::vector<double> sum = {1};  // [k] k chosen on the nodes so far, none with more than `limit`
    for (const std::vector<double>& here : on_node) {
      std::vector<double> next(std::min<size_t>(sum.size() + here.size() - 1, chosen + 1), 0.0);
      for (size_t k = 0; k < sum.size(); ++k)
        for (size_t more = 0; more < here.size() && more <= static_cast<size_t>(limit) && k + more < next.size();
             ++more)
          next[k + more] += sum[k] * here[more];
      sum = std::move(next);
    }
    return sum.size() == static_cast<size_t>(chosen) + 1 ? sum[chosen] : 0.0;
  };
  const double any = with_at_most(chosen);
  double mean = 0;
  for (int limit = 0; limit < chosen; ++limit) mean += 1 - with_at_most(limit) / any;
  return mean;
}

double whole_expert_share(const PlannedModel& planned) {
  const model::ModelConfig& config = planned.model->config();
  ENSURE(planned.placement.whole_experts(), "experts are whole");
  // Experts are balanced by number, so that all layers are alike.
  const auto layer =
      std::ranges::find_if(planned.placement.expert_nodes, [](const auto& list) { return !list.empty(); });
  ENSURE(layer != planned.placement.expert_nodes.end(), "there are experts");
  std::vector<int> count(planned.placement.nodes(), 0);
  for (const int node : *layer) ++count[node];
  const int chosen = config.experts_per_token;
  return chosen / (expected_most_experts(count, chosen) * planned.placement.nodes());
}

std::vector<DecodePrediction> predict_decode(const PlannedModel& planned, const PlanRequest& request,
                                             const MachineSpeed& speed, std::span<const int64_t> contexts) {
  Step weights(request, speed);
  add_weights(weights, planned);
  std::vector<DecodePrediction> predictions;
  for (const int64_t context : contexts) {
    Step step = weights;
    add_attention(step, planned.model->config(), context);
    predictions.push_back(step.result(context));
  }
  return predictions;
}

}  // namespace cpuinfer::load
