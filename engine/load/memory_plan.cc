#include "engine/load/memory_plan.h"

#include <algorithm>
#include <numeric>

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
      for (const model::TensorSpec& tensor : spec.tensors)
        target.node_bytes[0] += tensor.shape[0] * static_cast<int64_t>(sizeof(float));
    }
  });
  return lines;
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

MemoryPlan plan_memory(model::Model& model, const PlanRequest& request, const numa::Topology& topology,
                       const numa::MemoryLimit& available) {
  const model::ModelConfig& config = model.config();
  MemoryPlan plan;
  plan.available = available;
  plan.kv_bytes_per_token = model::KvCache::page_bytes(config) / kernels::kLeafTokens;
  plan.context_tokens = int64_t{request.kv_pages} * kernels::kLeafTokens;
  plan.lines = weight_lines(model, request.nodes);
  const auto on_first_node = [&](const char* purpose, int64_t bytes) {
    PlanLine line{purpose, std::vector<int64_t>(request.nodes, 0)};
    line.node_bytes[0] = bytes;
    plan.lines.push_back(std::move(line));
  };
  on_first_node("KV cache", model::KvCache::page_bytes(config) * request.kv_pages);
  on_first_node("workspace", model::Workspace::bytes(config, request.limits, request.workers));
  on_first_node("reserve", kReserveBytes);

  // A simulated node shares the memory of the real one it stands on.
  const int real_nodes = static_cast<int>(topology.nodes().size());
  for (int node = 0; node < request.nodes; ++node) plan.node_capacity.push_back(topology.home(node).free_bytes);
  int64_t room = available.bytes - plan.total();  // for more KV pages; negative: what must go
  bool other_nodes_fit = true;
  for (int real = 0; real < std::min(real_nodes, request.nodes); ++real) {
    int64_t needed = 0;
    for (int node = real; node < request.nodes; node += real_nodes) needed += plan.node_total(node);
    const int64_t capacity = plan.node_capacity[real];
    if (real == 0) room = std::min(room, capacity - needed);
    if (needed <= capacity) continue;
    if (real != 0) other_nodes_fit = false;
    plan.shortages.push_back(format("node {} needs {} and has {} free: {} short", topology.home(real).id,
                                    format_bytes(needed), format_bytes(capacity), format_bytes(needed - capacity)));
  }
  const int64_t page_bytes = model::KvCache::page_bytes(config);
  const int64_t more_pages = room >= 0 ? room / page_bytes : -ceil_div(-room, page_bytes);
  if (other_nodes_fit) {
    const int64_t pages = std::max<int64_t>(request.kv_pages + more_pages, 0) / request.sequences;
    plan.largest_context = std::min<int64_t>(pages * kernels::kLeafTokens, std::max<int64_t>(request.context_limit, 0));
  }
  if (plan.total() > available.bytes) {
    plan.shortages.push_back(format("the plan needs {} and this process may take {}: {} short ({})",
                                    format_bytes(plan.total()), format_bytes(available.bytes),
                                    format_bytes(plan.total() - available.bytes), available.reason));
  }
  return plan;
}

std::string MemoryPlan::table() const {
  const int nodes = static_cast<int>(node_capacity.size());
  std::string text = format("{:<24}", "purpose");
  for (int node = 0; node < nodes; ++node) text += format("{:>12}", format("node {}", node));
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
  Json capacity{Json::Array{}};
  for (const int64_t bytes : node_capacity) capacity.push_back(bytes);
  json.set("node_free_bytes", std::move(capacity));
  Json sentences{Json::Array{}};
  for (const std::string& shortage : shortages) sentences.push_back(shortage);
  json.set("shortages", std::move(sentences));
  return json;
}

Result<void> MemoryPlan::check(std::string_view advice) const {
  if (fits()) return {};
  const std::string own = largest_context > 0
                              ? format("--ctx {} would fit", largest_context)
                              : std::string("no context fits: free memory, or use a machine with more of it");
  return fail(ErrorCode::kDoesNotFit,
              format("not enough memory, nothing was loaded\n{}\n{}", table(), advice.empty() ? own : advice));
}

}  // namespace cpuinfer::load
