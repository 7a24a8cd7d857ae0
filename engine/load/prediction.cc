#include "engine/load/prediction.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace cpuinfer::load {
namespace {

using model::PackedMatrix;
using model::WeightSpec;

double log_choose(int n, int k) { return std::lgamma(n + 1.0) - std::lgamma(k + 1.0) - std::lgamma(n - k + 1.0); }

/// Adds up the phases of one step.
class Step {
 public:
  Step(const PlanRequest& request, const MachineSpeed& speed) : speed_(speed), workers_(request.nodes(), 0) {
    for (const int node : request.worker_nodes) ++workers_[node];
  }
  int nodes() const { return static_cast<int>(workers_.size()); }

  /// A phase in which node n reads bytes[n] in pieces that workers take whole; each piece is piece_bytes.
  void read(std::span<const double> bytes, double piece_bytes) {
    double slowest = 0;
    for (int node = 0; node < nodes(); ++node) {
      all_bytes_ += bytes[node];
      const double pieces = std::ceil(bytes[node] / piece_bytes - 1e-9);
      const double of_worker = std::ceil(pieces / workers_[node]) * piece_bytes;
      const double core = speed_.core_bandwidth > 0 ? of_worker / speed_.core_bandwidth : 0;
      slowest = std::max({slowest, bytes[node] / speed_.node_bandwidth, core});
    }
    reading_ += slowest;
  }
  /// Activations of which each node reads what others wrote.
  void fetch(double bytes) {
    if (nodes() > 1 && speed_.remote_bandwidth > 0)
      fetching_ += bytes * (nodes() - 1) / nodes() / speed_.remote_bandwidth;
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

/// The gate/up, or the down, of the experts that a token uses. experts: of one layer.
void read_experts(Step& step, std::span<const PackedMatrix* const> experts, int chosen, bool whole, bool all_at_once) {
  const PackedMatrix& any = *experts[0];
  const double unit = unit_bytes(any);
  if (!whole) {
    // Outputs of all chosen experts are one piece in the down phase, whose worker adds them up.
    return step.read(node_bytes(any, chosen), all_at_once ? unit * chosen : unit);
  }
  std::vector<int> count(step.nodes(), 0);
  for (const PackedMatrix* expert : experts) ++count[expert->node_of(0)];
  // The node with the most of them decides; all others are done before.
  const double most = expected_most_experts(count, chosen);
  const double expert = unit * any.units();
  std::vector<double> bytes(step.nodes(), step.nodes() > 1 ? expert * (chosen - most) / (step.nodes() - 1) : 0);
  bytes[0] = expert * most;
  step.read(bytes, unit);
}

}  // namespace

double expected_most_experts(std::span<const int> node_experts, int chosen) {
  int all = 0;
  for (const int count : node_experts) all += count;
  ENSURE(chosen > 0 && chosen <= all, "experts are chosen from those that there are");
  // ways[k]: of choosing k experts with at most `limit` on each of the nodes so far, as a part of all ways (the
  // logarithm of all ways is spread evenly so that nothing overflows).
  const auto at_most = [&](int limit) {
    std::vector<double> ways(chosen + 1, 0.0);
    ways[0] = 1;
    int seen = 0;
    for (const int count : node_experts) {
      // Probability that k of the first experts are among `seen + count`, built up node by node (hypergeometric).
      std::vector<double> next(chosen + 1, 0.0);
      for (int before = 0; before <= std::min(seen, chosen); ++before) {
        if (ways[before] == 0) continue;
        for (int here = 0; here <= std::min({limit, count, chosen - before}); ++here) {
          const int left = all - seen, wanted = chosen - before;
          if (wanted - here > left - count) continue;
          const double log_p =
              log_choose(count, here) + log_choose(left - count, wanted - here) - log_choose(left, wanted);
          next[before + here] += ways[before] * std::exp(log_p);
        }
      }
      ways = std::move(next);
      seen += count;
    }
    return ways[chosen];
  };
  double mean = 0;
  for (int limit = 0; limit < chosen; ++limit) mean += 1 - at_most(limit);
  return mean;
}

std::vector<DecodePrediction> predict_decode(const PlannedModel& planned, const PlanRequest& request,
                                             const MachineSpeed& speed, std::span<const int64_t> contexts) {
  const model::ModelConfig& config = planned.model->config();
  const int nodes = planned.placement.nodes();
  const model::KvStripes stripes(config.kv_heads, nodes);
  const bool whole = planned.placement.whole_experts();
  std::vector<DecodePrediction> predictions;
  for (const int64_t context : contexts) {
    Step step(request, speed);
    // Weights, in the order of use.
    std::vector<const PackedMatrix*> gate_ups, downs;
    planned.model->visit_weights([&](const WeightSpec& spec) {
      if (spec.matrix == nullptr || spec.purpose == "embedding") return;  // one row of it
      if (spec.purpose == "experts") {
        // Gate and up, then down, expert by expert.
        (gate_ups.size() == downs.size() ? gate_ups : downs).push_back(spec.matrix);
        if (static_cast<int>(downs.size()) < config.experts) return;
        read_experts(step, gate_ups, config.experts_per_token, whole, false);
        read_experts(step, downs, config.experts_per_token, whole, true);
        gate_ups.clear();
        downs.clear();
        return;
      }
      // Of a copy on every node, each node reads its own.
      step.read(node_bytes(*spec.matrix), unit_bytes(*spec.matrix));
    });

    const int64_t group = config.heads / config.kv_heads;
    const int pages = model::KvCache::pages_for(context);
    std::vector<double> kv;
    for (const int64_t bytes : model::KvCache::node_bytes(config, pages, nodes))
      kv.push_back(static_cast<double>(bytes) / config.layers);
    const double superblock = static_cast<double>(model::KvCache::page_bytes(config)) / config.layers /
                              config.kv_heads * model::kSuperblockTokens / kernels::kLeafTokens;
    for (int layer = 0; layer < config.layers; ++layer) {
      const bool moe = config.moe_layers[layer];
      if (context > 0) step.read(kv, superblock);
      // Attention, its output and its merging; down's output, which the next layer reads.
      const bool merges = context > model::kSuperblockTokens;
      const bool in_node = stripes.stripes() == 1;
      step.meet(3 + (merges && !in_node ? 1 : 0) + (in_node ? 0 : 1));
      step.meet_in_node((in_node ? 1 : 0) + (merges && in_node ? 1 : 0));
      if (moe) {
        step.meet_in_node(whole ? 2 : 1);
        step.meet(1);
      } else {
        step.meet(2);
      }
      const int64_t hidden_row = config.hidden * static_cast<int64_t>(sizeof(float));
      const int64_t intermediate =
          moe ? int64_t{config.experts_per_token} * config.moe_intermediate : config.intermediate;
      step.fetch(
          static_cast<double>(2 * hidden_row + group * config.kv_heads * config.head_dim * 2 + intermediate * 2));
    }
    step.meet(2);
    predictions.push_back(step.result(context));
  }
  return predictions;
}

}  // namespace cpuinfer::load
