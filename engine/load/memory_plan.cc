#include "engine/load/memory_plan.h"

#include <algorithm>
#include <numeric>
#include <span>

#include "base/format.h"
#include "engine/load/loader.h"
#include "engine/load/packed_layout.h"
#include "numa/memory.h"

namespace cpuinfer::load {
namespace {

// Lines in the order in which their purposes first appear among the weights, of those that stay in memory.
std::vector<PlanLine> weight_lines(model::Model& model, int nodes, const StreamPlan& stream) {
  std::vector<PlanLine> lines;
  const auto line = [&](const std::string& purpose) -> PlanLine& {
    for (PlanLine& known : lines)
      if (known.purpose == purpose) return known;
    return lines.emplace_back(PlanLine{purpose, std::vector<int64_t>(nodes, 0)});
  };
  model.visit_weights([&](const model::WeightSpec& spec) {
    if (is_streamed(model.config(), stream, spec)) return;
    PlanLine& target = line(spec.purpose);
    if (spec.matrix != nullptr) {
      for (int node = 0; node < nodes; ++node) target.node_bytes[node] += spec.matrix->shard_bytes(node);
    } else {
      for (int64_t& bytes : target.node_bytes) bytes += spec.vector->bytes();
    }
  });
  return lines;
}

// Bytes on each node of all that is sliced in proportion to Placement::node_shares.
std::vector<int64_t> sliced_bytes(model::Model& model, const model::Placement& placement) {
  std::vector<int64_t> bytes(placement.nodes(), 0);
  model.visit_weights([&](const model::WeightSpec& spec) {
    if (spec.matrix == nullptr || spec.matrix->split().is_replicated()) return;
    if (placement.whole_experts() && spec.purpose == "experts") return;
    for (int node = 0; node < placement.nodes(); ++node) bytes[node] += spec.matrix->shard_bytes(node);
  });
  return bytes;
}

// Parts of `bytes` in proportion to `weights`, but none over its room; empty if there is not the room.
std::vector<int64_t> fill(int64_t bytes, std::span<const int64_t> weights, std::span<const int64_t> room) {
  std::vector<int64_t> parts(weights.size(), -1);
  for (bool changed = true; changed;) {
    changed = false;
    int64_t weight = 0, left = bytes;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (parts[i] >= 0)
        left -= parts[i];
      else
        weight += weights[i];
    }
    if (weight == 0) return {};
    for (size_t i = 0; i < parts.size() && !changed; ++i) {
      const double part = static_cast<double>(left) * static_cast<double>(weights[i]) / static_cast<double>(weight);
      if (parts[i] >= 0 || part <= static_cast<double>(room[i])) continue;
      parts[i] = std::max<int64_t>(room[i], 0);
      changed = true;
    }
    if (changed) continue;
    for (size_t i = 0; i < parts.size(); ++i)
      if (parts[i] < 0)
        parts[i] = static_cast<int64_t>(static_cast<double>(left) * static_cast<double>(weights[i]) /
                                        static_cast<double>(weight));
  }
  return parts;
}

}  // namespace

int64_t PlanLine::total() const { return std::accumulate(node_bytes.begin(), node_bytes.end(), int64_t{0}); }

int64_t MemoryPlan::total() const {
  int64_t bytes = 0;
  for (const PlanLine& line : lines) bytes += line.total();
  return bytes;
}

int64_t MemoryPlan::node_total(int node) const {
  int64_t bytes = 0;
  for (const PlanLine& line : lines) bytes += line.node_bytes[node];
  return bytes;
}

int PlanRequest::nodes() const { return 1 + *std::max_element(worker_nodes.begin(), worker_nodes.end()); }

namespace {

// Bytes of weights on a node that lie in reserved pages of 1 GiB, which are not free memory: all or none. Their buffer
// has some bytes more than the plan, for alignment.
int64_t reserved_bytes(const MemoryPlan& plan, size_t weight_lines, int node, const numa::Topology& topology) {
  constexpr int64_t kAlignmentBytes = 16_MiB;
  int64_t weights = 0;
  for (size_t i = 0; i < weight_lines; ++i) weights += plan.lines[i].node_bytes[node];
  if (numa::giant_pages_for(weights, node, topology) == 0) return 0;
  return numa::giant_pages_for(weights + kAlignmentBytes, node, topology) > 0 ? weights : 0;
}

// What workers take on each node to load: a block each, and its slack (read_weights).
std::vector<int64_t> loading_bytes(model::Model& model, const PlanRequest& request) {
  constexpr int64_t kSlack = 256_KiB;  // ends of the extents of a block, whole pages
  constexpr int64_t kWidestElement = 4;
  int64_t unit_bytes = 0;  // the least that a block can be, in a file of float32
  model.visit_weights([&](const model::WeightSpec& spec) {
    if (spec.matrix != nullptr)
      unit_bytes = std::max(unit_bytes, int64_t{kernels::kUnitOutputs} * spec.matrix->terms() * kWidestElement);
  });
  const int nodes = request.nodes();
  const int64_t workers = std::max<int64_t>(static_cast<int64_t>(request.worker_nodes.size()), kLeastLoaders);
  const int64_t block_bytes = std::max(std::min(kBlockBytes, kBlocksBytes / workers), unit_bytes) + kSlack;
  std::vector<int64_t> counts(nodes, 0);
  for (const int node : request.worker_nodes) ++counts[node];
  for (int64_t& count : counts)
    count = round_up(std::max<int64_t>(count, ceil_div(kLeastLoaders, nodes)) * block_bytes, int64_t{2_MiB});
  return counts;
}

constexpr const char* kKvCache = "KV cache";

// All that is held beside weights, the KV cache first, for so many KV pages. `small_weight_bytes`: of weights on each
// node in pages of 2 MiB or less.
std::vector<PlanLine> lines_beside_weights(model::Model& model, const model::Placement& placement,
                                           const PlanRequest& request, int kv_pages,
                                           std::span<const int64_t> small_weight_bytes) {
  const model::ModelConfig& config = model.config();
  const int nodes = placement.nodes();
  int64_t tokens = int64_t{kv_pages} * kernels::kLeafTokens;
  if (request.limits.cold_pages) tokens = std::max(tokens, request.limits.context_tokens);
  model::StepLimits limits = request.limits;
  limits.context_tokens = tokens;
  std::vector<PlanLine> lines = {
      {kKvCache, model::KvCache::node_bytes(config, kv_pages, nodes)},
      {"workspace", model::Workspace::node_bytes(config, limits, placement, request.worker_nodes)},
      {"requests", std::vector<int64_t>(nodes, 0)},
      {"page tables", std::vector<int64_t>(nodes, 0)},
      {"reserve", std::vector<int64_t>(nodes, 0)}};
  lines[2].node_bytes[0] = tokens * kRequestTokenBytes + int64_t{request.sequences} * config.vocab * kRequestWordBytes;
  lines[4].node_bytes[0] = kReserveBytes;
  // Blocks of weights are given back before the rest is taken, and lie where that will: what they have beyond it
  // counts.
  PlanLine loading = {"loading", loading_bytes(model, request)};
  for (int node = 0; node < nodes; ++node) {
    const int64_t later = lines[0].node_bytes[node] + lines[1].node_bytes[node];
    // A table of 4 KiB for 2 MiB, which the kernel has at hand for a huge page, too.
    lines[3].node_bytes[node] = ceil_div(small_weight_bytes[node] + later, int64_t{512});
    loading.node_bytes[node] = std::max<int64_t>(loading.node_bytes[node] - later, 0);
  }
  if (loading.total() > 0) lines.insert(lines.end() - 1, std::move(loading));
  if (request.stage_pages > 0) {
    model::ModelConfig layer = config;
    layer.layers = 1;
    lines.insert(lines.begin() + 1, {"KV read buffers", model::KvCache::node_bytes(layer, request.stage_pages, nodes)});
  }
  return lines;
}

// Of the slots that streamed weights go through. parts: of the model.
void add_stream_lines(MemoryPlan& plan, const StreamPlan& stream, const StreamedParts& parts, int nodes) {
  const auto add = [&](const char* purpose, auto bytes_on) {
    PlanLine line{purpose, std::vector<int64_t>(nodes, 0)};
    for (int node = 0; node < nodes; ++node) line.node_bytes[node] = bytes_on(static_cast<size_t>(node));
    if (line.total() > 0) plan.lines.push_back(std::move(line));
  };
  const auto slot = [](const PartReads& reads, size_t node) {
    return reads.slot_bytes.empty() ? 0 : reads.slot_bytes[node];
  };
  add("expert cache", [&](size_t node) { return stream.expert_slots * slot(parts.expert, node); });
  add("read buffers", [&](size_t node) {
    return (stream.attention_layers > 0 ? kRingSlots * slot(parts.attention, node) : 0) +
           (stream.mlp_layers > 0 ? kRingSlots * slot(parts.mlp, node) : 0);
  });
}

MemoryPlan plan_memory(model::Model& model, const model::Placement& placement, const PlanRequest& request,
                       const numa::Topology& topology, const numa::MemoryLimit& available,
                       const StreamPlan& stream = {}, const StreamedParts& parts = {}) {
  const int nodes = placement.nodes();
  MemoryPlan plan;
  plan.available = available;
  plan.kv_bytes_per_token = model::KvCache::page_bytes(model.config()) / kernels::kLeafTokens;
  plan.context_tokens = int64_t{request.kv_pages} * kernels::kLeafTokens;
  plan.lines = weight_lines(model, nodes, stream);
  const size_t weight_line_count = plan.lines.size();
  add_stream_lines(plan, stream, parts, nodes);
  const bool simulated = nodes > static_cast<int>(topology.nodes().size());
  std::vector<int64_t> small_weight_bytes;
  for (int node = 0; node < nodes; ++node) {
    plan.node_ids.push_back(simulated ? node : topology.home(node).id);
    plan.node_capacity.push_back(topology.home(node).free_bytes);
    plan.node_reserved.push_back(simulated ? 0 : reserved_bytes(plan, weight_line_count, node, topology));
    small_weight_bytes.push_back(plan.node_total(node) - plan.node_reserved.back());
  }
  for (PlanLine& line : lines_beside_weights(model, placement, request, request.kv_pages, small_weight_bytes))
    plan.lines.push_back(std::move(line));

  // A simulated node shares the memory of the real one it stands on.
  const int real_nodes = std::min(static_cast<int>(topology.nodes().size()), nodes);
  for (int real = 0; real < real_nodes; ++real) {
    int64_t needed = 0;
    for (int node = real; node < nodes; node += real_nodes) needed += plan.node_total(node) - plan.node_reserved[node];
    const int64_t capacity = plan.node_capacity[real];
    if (needed <= capacity) continue;
    plan.shortages.push_back(format("node {} needs {} and has {} free: {} short", topology.home(real).id,
                                    format_bytes(needed), format_bytes(capacity), format_bytes(needed - capacity)));
  }
  const int64_t all_reserved = std::accumulate(plan.node_reserved.begin(), plan.node_reserved.end(), int64_t{0});
  if (const int64_t needed = plan.total() - all_reserved; needed > available.bytes) {
    plan.shortages.push_back(format("the plan needs {} and this process may take {}: {} short ({})",
                                    format_bytes(needed), format_bytes(available.bytes),
                                    format_bytes(needed - available.bytes), available.reason));
  }
  return plan;
}

// What a node has for slices when `others` bytes are taken: its part of the memory of the real node that it stands on.
// Slices are whole units, so a node may get a little more than its share: `margin` in thousandths is left for that.
std::vector<int64_t> room_for_slices(const MemoryPlan& plan, std::span<const int64_t> others, int real_nodes,
                                     int margin) {
  const int nodes = static_cast<int>(others.size());
  std::vector<int64_t> room(others.size());
  for (int node = 0; node < nodes; ++node) {
    const int64_t neighbours =
        numa::split(nodes, std::min(real_nodes, nodes), node % std::min(real_nodes, nodes)).count();
    room[node] = (plan.node_capacity[node] / neighbours - others[node]) / 1000 * (1000 - margin);
  }
  return room;
}

// The longest context that fits as it is planned, or with slices that are dealt anew. Weights stay, most of the rest
// grows with it. `proportional` is the plan with slices by workers, `sliced` its bytes of them on each node.
int64_t largest_context(model::Model& model, const model::Placement& placement, const PlanRequest& request,
                        const MemoryPlan& proportional, std::span<const int64_t> sliced, int real_nodes) {
  constexpr int kMargin = 8;  // more than plan_model begins with
  const int nodes = placement.nodes();
  real_nodes = std::min(real_nodes, nodes);
  std::vector<int64_t> workers(nodes, 0);
  for (const int node : request.worker_nodes) ++workers[node];
  const int64_t all_sliced = std::accumulate(sliced.begin(), sliced.end(), int64_t{0});

  // Of weights, and of slots that streamed ones go through, in free memory: the lines that come first.
  std::vector<int64_t> weight_bytes(nodes, 0);
  for (int node = 0; node < nodes; ++node) {
    for (const PlanLine& line : proportional.lines) {
      if (line.purpose == kKvCache) break;
      weight_bytes[node] += line.node_bytes[node];
    }
    weight_bytes[node] -= proportional.node_reserved[node];
  }

  const auto fits = [&](int64_t pages) {
    const int64_t all_pages = pages * request.sequences;
    if (all_pages > INT32_MAX) return false;
    const std::vector<PlanLine> lines =
        lines_beside_weights(model, placement, request, static_cast<int>(all_pages), weight_bytes);
    std::vector<int64_t> others(nodes, 0);
    int64_t all = all_sliced;
    for (int node = 0; node < nodes; ++node) {
      for (const PlanLine& line : lines) others[node] += line.node_bytes[node];
      others[node] += weight_bytes[node] - sliced[node];
      all += others[node];
    }
    if (all > proportional.available.bytes) return false;
    bool as_planned = true;
    for (int real = 0; real < real_nodes; ++real) {
      int64_t needed = 0;
      for (int node = real; node < nodes; node += real_nodes) needed += others[node] + sliced[node];
      as_planned &= needed <= proportional.node_capacity[real];
    }
    if (as_planned || nodes == 1 || all_sliced == 0) return as_planned;
    return !fill(all_sliced, workers, room_for_slices(proportional, others, real_nodes, kMargin)).empty();
  };
  int64_t fitting = 0;
  int64_t too_many = model::KvCache::pages_for(std::max<int64_t>(request.context_limit, 0)) + 1;
  while (too_many - fitting > 1) {
    const int64_t middle = fitting + (too_many - fitting) / 2;
    (fits(middle) ? fitting : too_many) = middle;
  }
  return std::min(fitting * kernels::kLeafTokens, std::max<int64_t>(request.context_limit, 0));
}

// How much of a limit is used, of the one that is used most: over 1 if it does not fit.
double largest_use(const MemoryPlan& plan, int real_nodes) {
  const int nodes = static_cast<int>(plan.node_capacity.size());
  real_nodes = std::min(real_nodes, nodes);
  const auto use = [](int64_t needed, int64_t limit) {
    return static_cast<double>(needed) / static_cast<double>(std::max<int64_t>(limit, 1));
  };
  double most = 0;
  int64_t all = 0;
  for (int real = 0; real < real_nodes; ++real) {
    int64_t needed = 0;
    for (int node = real; node < nodes; node += real_nodes) needed += plan.node_total(node) - plan.node_reserved[node];
    most = std::max(most, use(needed, plan.node_capacity[real]));
    all += needed;
  }
  return std::max(most, use(all, plan.available.bytes));
}

// The least for which `fits`, or `most`. REQUIRES: it fits from some value on.
template <typename Fits>
int least_fitting(int least, int most, Fits&& fits) {
  while (least < most) {
    const int middle = least + (most - least) / 2;
    if (fits(middle))
      most = middle;
    else
      least = middle + 1;
  }
  return most;
}

// Chooses what is streamed: as little as fits.
Result<PlannedModel> plan_streaming(const model::ModelConfig& config, const PlanRequest& request,
                                    const numa::Topology& topology, const numa::MemoryLimit& available) {
  constexpr double kFull = 15.0 / 16;
  constexpr int64_t kSpareBytes = 256_MiB;  // of spare slots, all nodes together: what is read while others compute
  constexpr int kLeastSpare = 2, kMostSpare = 64;
  PlannedModel planned;
  std::vector<int64_t> workers(static_cast<size_t>(request.nodes()), 0);
  for (const int node : request.worker_nodes) ++workers[node];
  planned.placement.node_shares = workers;
  TRY_ASSIGN(planned.model, model::create_model(config, planned.placement));
  const StreamedParts parts = streamed_parts(lay_out_packed(*planned.model));
  const int real_nodes = static_cast<int>(topology.nodes().size());
  const int moe_layers = static_cast<int>(std::count(config.moe_layers.begin(), config.moe_layers.end(), true));
  const int dense_layers = config.layers - moe_layers;
  const int all_experts = moe_layers * config.experts;
  const auto plan_with = [&](const StreamPlan& stream) {
    return plan_memory(*planned.model, planned.placement, request, topology, available, stream, parts);
  };
  const auto fits = [&](const StreamPlan& stream) { return largest_use(plan_with(stream), real_nodes) <= kFull; };

  // Fewer layers than slots would be no saving.
  StreamPlan stream{.attention_layers = config.layers > kRingSlots ? config.layers : 0,
                    .mlp_layers = dense_layers > kRingSlots ? dense_layers : 0,
                    .expert_slots = std::min(all_experts, kLeastSpare),
                    .spare_slots = std::min(all_experts, kLeastSpare)};
  if (all_experts <= kLeastSpare) stream.expert_slots = stream.spare_slots = 0;
  const MemoryPlan least = plan_with(stream);
  const auto fewest = [&](int StreamPlan::* layers) {
    if (stream.*layers == 0) return;
    const int found = least_fitting(0, stream.*layers - kRingSlots, [&](int count) {
      StreamPlan wanted = stream;
      wanted.*layers = count == 0 ? 0 : count + kRingSlots;
      return fits(wanted);
    });
    stream.*layers = found == 0 ? 0 : found + kRingSlots;
  };
  if (least.fits()) {
    fewest(&StreamPlan::attention_layers);
    fewest(&StreamPlan::mlp_layers);
  }
  if (least.fits() && stream.expert_slots > 0) {
    int64_t slot_bytes = 0;
    for (const int64_t bytes : parts.expert.slot_bytes) slot_bytes += bytes;
    const auto with_slots = [&](int slots) {
      StreamPlan wanted = stream;
      wanted.expert_slots = slots;
      return wanted;
    };
    const int most = all_experts - stream.expert_slots;
    const int missing = least_fitting(
        0, most, [&](int count) { return fits(count == 0 ? with_slots(0) : with_slots(all_experts - count)); });
    stream.expert_slots = missing == 0 ? 0 : all_experts - missing;
    const int spare = static_cast<int>(std::clamp<int64_t>(kSpareBytes / slot_bytes, kLeastSpare, kMostSpare));
    // At least half of the slots keep experts.
    stream.spare_slots = std::min(stream.expert_slots, std::clamp(stream.expert_slots / 2, kLeastSpare, spare));
  }
  planned.plan = plan_with(stream);
  planned.stream = stream;
  planned.plan.largest_context =
      largest_context(*planned.model, planned.placement, request, least,
                      std::vector<int64_t>(static_cast<size_t>(request.nodes()), 0), real_nodes);
  return planned;
}

// Nodes for the experts of every layer.
std::vector<std::vector<int>> whole_expert_nodes(const model::ModelConfig& config, const PlanRequest& request) {
  std::vector<std::vector<int>> nodes;
  for (int l = 0; l < config.layers; ++l) {
    std::vector<double> usage;
    if (l < static_cast<int>(request.expert_usage.size())) usage = request.expert_usage[l];
    nodes.push_back(config.moe_layers[l] ? model::balance_experts(config.experts, request.nodes(), usage)
                                         : std::vector<int>{});
  }
  return nodes;
}

}  // namespace

Result<PlannedModel> plan_model(const model::ModelConfig& config, const PlanRequest& request,
                                const numa::Topology& topology, const numa::MemoryLimit& available) {
  if (request.stream_weights) return plan_streaming(config, request, topology, available);
  const int nodes = request.nodes();
  const int real_nodes = static_cast<int>(topology.nodes().size());
  std::vector<int64_t> workers(nodes, 0);
  for (const int node : request.worker_nodes) ++workers[node];
  PlannedModel planned;
  if (request.whole_experts) planned.placement.expert_nodes = whole_expert_nodes(config, request);
  const auto plan_with = [&](std::vector<int64_t> shares) -> Result<void> {
    planned.placement.node_shares = std::move(shares);
    TRY_ASSIGN(planned.model, model::create_model(config, planned.placement));
    planned.plan = plan_memory(*planned.model, planned.placement, request, topology, available);
    return {};
  };
  TRY(plan_with(workers));
  const std::vector<int64_t> sliced = sliced_bytes(*planned.model, planned.placement);
  const int64_t all_sliced = std::accumulate(sliced.begin(), sliced.end(), int64_t{0});
  const int64_t context = largest_context(*planned.model, planned.placement, request, planned.plan, sliced, real_nodes);

  std::vector<int64_t> others(nodes);
  for (int node = 0; node < nodes; ++node) others[node] = planned.plan.node_total(node) - sliced[node];
  // Slices are whole units, up to a forty-eighth of a matrix: a node that gets too much by that is given less room.
  constexpr int kAttempts = 8, kLeastMargin = 2;
  std::vector<int64_t> room = room_for_slices(planned.plan, others, real_nodes, kLeastMargin);
  for (int attempt = 0; attempt < kAttempts && !planned.plan.fits() && nodes > 1; ++attempt) {
    std::vector<int64_t> parts = fill(all_sliced, workers, room);
    if (parts.empty()) break;
    for (int64_t& part : parts) part = ceil_div(part, int64_t{1_MiB});  // shares, small enough to be multiplied
    TRY(plan_with(std::move(parts)));
    const std::vector<int64_t> given = sliced_bytes(*planned.model, planned.placement);
    const std::vector<int64_t> fitting = room_for_slices(planned.plan, others, real_nodes, kLeastMargin);
    for (int node = 0; node < nodes; ++node) room[node] -= std::max<int64_t>(given[node] - fitting[node], 0);
  }
  if (!planned.plan.fits()) {
    TRY(plan_with(workers));
    if (request.whole_experts) {
      PlanRequest slices = request;
      slices.whole_experts = false;
      TRY_ASSIGN(const PlannedModel other, plan_model(config, slices, topology, available));
      if (other.plan.fits()) planned.plan.remedy = "--placement slice would fit";
    }
    if (context == 0 && planned.plan.remedy.empty()) {
      PlanRequest streaming = request;
      streaming.stream_weights = true;
      TRY_ASSIGN(const PlannedModel other, plan_model(config, streaming, topology, available));
      planned.plan.streaming_fits = other.plan.fits();
    }
  }
  planned.plan.largest_context = context;
  return planned;
}

}  // namespace cpuinfer::load
