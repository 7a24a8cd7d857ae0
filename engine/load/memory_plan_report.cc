// What a plan says: to people, to programs, and about what does not fit.
#include <numeric>

#include "base/format.h"
#include "engine/load/memory_plan.h"

namespace cpuinfer::load {

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
  const int64_t reserved = std::accumulate(node_reserved.begin(), node_reserved.end(), int64_t{0});
  if (reserved > 0) row("in reserved 1 GiB pages", [&](int node) { return node_reserved[node]; }, reserved);
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
  Json reserved{Json::Array{}};
  for (const int64_t bytes : node_reserved) reserved.push_back(bytes);
  json.set("node_reserved_bytes", std::move(reserved));
  Json sentences{Json::Array{}};
  for (const std::string& shortage : shortages) sentences.push_back(shortage);
  json.set("shortages", std::move(sentences));
  return json;
}

std::string MemoryPlan::advice() const {
  if (!remedy.empty()) return remedy;
  if (largest_context > 0) return format("--ctx {} would fit", largest_context);
  return format("no context fits: free memory, or use a machine with more of it{}",
                streaming_fits ? "; --weights stream would fit, with a model that `cpuinfer pack` has packed" : "");
}

Result<void> MemoryPlan::check(std::string_view other_advice) const {
  if (fits()) return {};
  return fail(ErrorCode::kDoesNotFit, format("not enough memory, nothing was loaded\n{}\n{}", table(),
                                             other_advice.empty() ? advice() : std::string(other_advice)));
}

}  // namespace cpuinfer::load
