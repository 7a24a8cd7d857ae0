#include "engine/load/memory_plan.h"

#include <algorithm>
#include <numeric>
#include <span>

#include "base/format.h"

namespace cpuinfer::load {
namespace {

// Lines in the order in which their purposes first appear among the weights.
std::vector<PlanLine> weight_lines(model::Model& model, int nodes) {
  std::vector<PlanLine> lines;
  const auto line = [&](const std::string& purpose) -> PlanLine& {
    for (PlanLine& known : lines)
      if (known.purpose == purpose) return known;
    return lines.emplace_back(PlanLine{purpose, std::vector<int64_t>(nodes, 0)});
  };
  model.visit_weights([&](const model::WeightSpec& spec) {
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

MemoryPlan plan_memory(model::Model& model, const model::Placement& placement, const PlanRequest& request,
                       const numa::Topology& topology, const numa::MemoryLimit& available) {
  const model::ModelConfig& config = model.config();
  const int nodes = placement.nodes();
  MemoryPlan plan;
  plan.available = available;
  plan.kv_bytes_per_token = model::KvCache::page_bytes(config) / kernels::kLeafTokens;
  plan.context_tokens = int64_t{request.kv_pages} * kernels::kLeafTokens;
  plan.lines = weight_lines(model, nodes);
  plan.lines.push_back({"KV cache", model::KvCache::node_bytes(config, request.kv_pages, nodes)});
  plan.lines.push_back(
      {"workspace", model::Workspace::node_bytes(config, request.limits, placement, request.worker_nodes)});
  plan.lines.push_back({"reserve", std::vector<int64_t>(nodes, 0)});
  plan.lines.back().node_bytes[0] = kReserveBytes;
  const bool simulated = nodes > static_cast<int>(topology.nodes().size());
  for (int node = 0; node < nodes; ++node) {
    plan.node_ids.push_back(simulated ? node : topology.home(node).id);
    plan.node_capacity.push_back(topology.home(node).free_bytes);
  }

  // A simulated node shares the memory of the real one it stands on.
  const int real_nodes = std::min(static_cast<int>(topology.nodes().size()), nodes);
  const auto on_real = [&](int real, auto bytes_of) {
    int64_t bytes = 0;
    for (int node = real; node < nodes; node += real_nodes) bytes += bytes_of(node);
    return bytes;
  };
  for (int real = 0; real < real_nodes; ++real) {
    const int64_t needed = on_real(real, [&](int node) { return plan.node_total(node); });
    const int64_t capacity = plan.node_capacity[real];
    if (needed <= capacity) continue;
    plan.shortages.push_back(format("node {} needs {} and has {} free: {} short", topology.home(real).id,
                                    format_bytes(needed), format_bytes(capacity), format_bytes(needed - capacity)));
  }
  if (plan.total() > available.bytes) {
    plan.shortages.push_back(format("the plan needs {} and this process may take {}: {} short ({})",
                                    format_bytes(plan.total()), format_bytes(available.bytes),
                                    format_bytes(plan.total() - available.bytes), available.reason));
  }

  // The longest context: keys and values and the workspace grow with it, all else stays.
  const auto context_fits = [&](int64_t pages) {
    const int64_t all_pages = pages * request.sequences;
    if (all_pages > INT32_MAX) return false;
    model::StepLimits limits = request.limits;
    limits.context_tokens = all_pages * kernels::kLeafTokens;
    const std::vector<int64_t> kv = model::KvCache::node_bytes(config, static_cast<int>(all_pages), nodes);
    const std::vector<int64_t> work = model::Workspace::node_bytes(config, limits, placement, request.worker_nodes);
    const auto needed = [&](int node) {
      int64_t bytes = kv[node] + work[node];
      for (const PlanLine& line : plan.lines)
        if (line.purpose != "KV cache" && line.purpose != "workspace") bytes += line.node_bytes[node];
      return bytes;
    };
    int64_t all = 0;
    for (int real = 0; real < real_nodes; ++real) {
      const int64_t bytes = on_real(real, needed);
      if (bytes > plan.node_capacity[real]) return false;
      all += bytes;
    }
    return all <= available.bytes;
  };
  int64_t fitting = 0;
  int64_t too_many = model::KvCache::pages_for(std::max<int64_t>(request.context_limit, 0)) + 1;
  while (too_many - fitting > 1) {
    const int64_t middle = fitting + (too_many - fitting) / 2;
    (context_fits(middle) ? fitting : too_many) = middle;
  }
  plan.largest_context = std::min(fitting * kernels::kLeafTokens, std::max<int64_t>(request.context_limit, 0));
  return plan;
}

Result<PlannedModel> plan_model(const model::ModelConfig& config, const PlanRequest& request,
                                const numa::Topology& topology, const numa::MemoryLimit& available) {
  const int nodes = request.nodes();
  std::vector<int64_t> workers(nodes, 0);
  for (const int node : request.worker_nodes) ++workers[node];
  PlannedModel planned;
  const auto plan_with = [&](std::vector<int64_t> shares) -> Result<void> {
    planned.placement.node_shares = std::move(shares);
    TRY_ASSIGN(planned.model, model::create_model(config, planned.placement));
    planned.plan = plan_memory(*planned.model, planned.placement, request, topology, available);
    return {};
  };
  if (request.whole_experts) {
    for (int l = 0; l < config.layers; ++l) {
      const bool known = l < static_cast<int>(request.expert_usage.size());
      planned.placement.expert_nodes.push_back(
          config.moe_layers[l]
              ? model::balance_experts(config.experts, nodes, known ? request.expert_usage[l] : std::vector<double>{})
              : std::vector<int>{});
    }
  }
  TRY(plan_with(workers));

  // Slices are whole units, so a node may get a little more than its share: the next try leaves a larger margin.
  const int real_nodes = static_cast<int>(topology.nodes().size());
  for (int margin = 1; margin <= 8 && !planned.plan.fits() && nodes > 1; ++margin) {
    const std::vector<int64_t> sliced = sliced_bytes(*planned.model, planned.placement);
    std::vector<int64_t> room(nodes);
    for (int node = 0; node < nodes; ++node) {
      const int64_t neighbours = numa::split(nodes, std::min(real_nodes, nodes), node % real_nodes).count();
      const int64_t capacity = planned.plan.node_capacity[node] / neighbours;
      room[node] = (capacity - (planned.plan.node_total(node) - sliced[node])) * (1000 - 2 * margin) / 1000;
    }
    const int64_t all = std::accumulate(sliced.begin(), sliced.end(), int64_t{0});
    std::vector<int64_t> parts = fill(all, workers, room);
    if (parts.empty()) break;
    for (int64_t& part : parts) part = ceil_div(part, int64_t{1_MiB});  // shares, small enough to be multiplied
    TRY(plan_with(std::move(parts)));
  }
  if (!planned.plan.fits()) {
    TRY(plan_with(workers));
    if (request.whole_experts) {
      PlanRequest sliced = request;
      sliced.whole_experts = false;
      TRY_ASSIGN(const PlannedModel other, plan_model(config, sliced, topology, available));
      if (other.plan.fits()) planned.plan.remedy = "--placement slice would fit";
    }
  }
  return planned;
}

std::string MemoryPlan::table() const {
  const int nodes = static_cast<int>(node_capacity.size());
  std::string text = format("{:<24}", "purpose");
  for (int node = 0; node < nodes; ++node) text += format("{:>12}", format("node {}", node_ids[node]));
  text += format("{:>12}\n", "all");
  const auto row = [&](const std::string& name, auto bytes_of, int64_t all) {
    text += format("{:<24}", name);
    for (int node = 0; node < nodes; ++node) text += format("{:>12}", format_bytes(bytes_of(node)));
    text += format("{:>12}\n", format_bytes(all));
  };
  for (const PlanLine& line : lines) row(line.purpose, [&](int node) { return line.node_bytes[node]; }, line.total());
  row("total", [&](int node) { return node_total(node); }, total());
  row("free", [&](int node) { return node_capacity[node]; }, available.bytes);
  if (fits()) {
    text += "it fits";
  } else {
    text += "it does not fit";
    for (const std::string& shortage : shortages) text += ": " + shortage;
  }
  return text;
}

Json MemoryPlan::json() const {
  Json json;
  json.set("fits", fits());
  json.set("total_bytes", total());
  json.set("available_bytes", available.bytes);
  json.set("available_reason", available.reason);
  json.set("context_tokens", context_tokens);
  json.set("kv_bytes_per_token", kv_bytes_per_token);
  Json purposes{Json::Array{}};
  for (const PlanLine& line : lines) {
    Json bytes{Json::Array{}};
    for (const int64_t node : line.node_bytes) bytes.push_back(node);
    Json entry;
    entry.set("purpose", line.purpose);
    entry.set("bytes", line.total());
    entry.set("node_bytes", std::move(bytes));
    purposes.push_back(std::move(entry));
  }
  json.set("purposes", std::move(purposes));
  Json ids{Json::Array{}};
  for (const int id : node_ids) ids.push_back(id);
  json.set("node_ids", std::move(ids));
  Json capacity{Json::Array{}};
  for (const int64_t bytes : node_capacity) capacity.push_back(bytes);
  json.set("node_free_bytes", std::move(capacity));
  Json sentences{Json::Array{}};
  for (const std::string& shortage : shortages) sentences.push_back(shortage);
  json.set("shortages", std::move(sentences));
  return json;
}

std::string MemoryPlan::advice() const {
  if (!remedy.empty()) return remedy;
  return largest_context > 0 ? format("--ctx {} would fit", largest_context)
                             : "no context fits: free memory, or use a machine with more of it";
}

Result<void> MemoryPlan::check(std::string_view other_advice) const {
  if (fits()) return {};
  return fail(ErrorCode::kDoesNotFit, format("not enough memory, nothing was loaded\n{}\n{}", table(),
                                             other_advice.empty() ? advice() : std::string(other_advice)));
}

}  // namespace cpuinfer::load
