// cpuinfer plan: memory by purpose and whether it fits, before any weight is read, and how fast it should be.
#include <algorithm>
#include <numeric>

#include "base/format.h"
#include "base/json.h"
#include "engine/checkpoint/checkpoint_file.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/plan_speed.h"
#include "tools/plan_svg.h"
#include "tools/progress.h"
#include "tools/session.h"
#include "tools/signals.h"

namespace cpuinfer::tools {
namespace {

Result<numa::Topology> planned_machine(const PlanOptions& options) {
  TRY_ASSIGN(const numa::Topology machine, numa::Topology::synthetic(options.topology));
  if (options.node_memory.empty()) return machine;
  std::vector<int64_t> sizes = options.node_memory;
  constexpr int64_t kMostBytes = int64_t{1} << 50;
  if (std::ranges::any_of(sizes, [](int64_t bytes) { return bytes > kMostBytes; }))
    return fail(ErrorCode::kUsage, "--node-memory is over 1024 TiB for a node; it must be at most that");
  if (sizes.size() == 1) sizes.resize(machine.nodes().size(), sizes[0]);
  if (sizes.size() != machine.nodes().size())
    return fail(ErrorCode::kUsage,
                format("--node-memory has {} sizes and --topology {} nodes; it must be one for all, or "
                       "one for each",
                       sizes.size(), machine.nodes().size()));
  return machine.with_memory(sizes);
}

Result<std::unique_ptr<run::Engine>> prepare(const PlanOptions& options) {
  ModelOptions model = options.model;
  if (!options.topology.empty()) {
    TRY_ASSIGN(model.engine.planned_machine, planned_machine(options));
  }
  if (options.synthetic.empty()) return prepare_engine(model);
  TRY_ASSIGN(model.engine.synthetic, synthetic_model(options.synthetic, options.layers, 0));
  return run::Engine::prepare(model.engine);
}

// The part of every sliced matrix that each node holds.
std::vector<double> node_shares(const model::Placement& placement) {
  std::vector<double> shares(placement.node_shares.begin(), placement.node_shares.end());
  const double all = std::accumulate(shares.begin(), shares.end(), 0.0);
  for (double& share : shares) share /= all;
  return shares;
}

const char* policy_name(const model::Placement& placement) { return placement.whole_experts() ? "expert" : "slice"; }

std::string placement_text(const model::Placement& placement) {
  const std::vector<double> shares = node_shares(placement);
  std::string parts;
  for (const double share : shares) parts += format("{}{:.1f} %", parts.empty() ? "" : ", ", 100 * share);
  const auto [least, most] = std::ranges::minmax(shares);
  if (least == most) parts = format("1/{}", shares.size());
  return format("placement {}: {} of every matrix{} on the nodes\n", policy_name(placement), parts,
                placement.whole_experts() ? " but the experts, which are whole," : "");
}

std::string left_out_text(std::span<const numa::Node> nodes) {
  std::string text;
  for (const numa::Node& node : nodes)
    text += format("left out: node {}, {} without CPUs\n", node.id, format_bytes(node.memory_bytes));
  return text;
}

// Of a context that is not all in memory: what of it is read from disk for every token.
int64_t cold_bytes(const run::Engine& engine) {
  return std::max<int64_t>(engine.context_tokens() - engine.memory_tokens(), 0) * engine.plan().kv_bytes_per_token;
}

std::string cold_text(const run::Engine& engine, std::optional<double> disk_bandwidth) {
  const double bytes = static_cast<double>(cold_bytes(engine));
  if (bytes == 0 || !engine.plan().fits()) return {};
  std::string text =
      format("KV on disk: {:.2f} GB for every token at {} tokens of context", bytes / 1e9, engine.context_tokens());
  if (!disk_bandwidth) return text + "; --disk-bandwidth RATE has its speed predicted\n";
  return text +
         format(", at {:.4g} GB/s {:.2g} tokens/s at the most\n", *disk_bandwidth / 1e9, *disk_bandwidth / bytes);
}

Json plan_json(const run::Engine& engine, const PlanSpeed& speed) {
  Json json = engine.plan().json();
  json.set("decode_weight_bytes", engine.decode_weight_bytes());
  json.set("threads", engine.workers());
  json.set("kv_disk_bytes_per_token", cold_bytes(engine));
  Json shares{Json::Array{}};
  for (const double share : node_shares(engine.placement())) shares.push_back(share);
  Json placement;
  placement.set("policy", policy_name(engine.placement()));
  placement.set("node_shares", std::move(shares));
  json.set("placement", std::move(placement));
  Json left_out{Json::Array{}};
  for (const numa::Node& node : engine.topology().memory_only()) {
    Json entry;
    entry.set("node", node.id);
    entry.set("bytes", node.memory_bytes);
    left_out.push_back(std::move(entry));
  }
  json.set("left_out", std::move(left_out));
  json.set("advice", engine.plan().fits() ? Json() : Json(engine.plan().advice()));
  json.set("speed", speed.json());
  return json;
}

}  // namespace

Result<int> plan_command(const PlanOptions& options) {
  Console console(options.console);
  TRY_ASSIGN(const std::unique_ptr<run::Engine> engine, prepare(options));
  const load::MemoryPlan& plan = engine->plan();
  if (options.svg_file)
    TRY(checkpoint::write_whole_file(
        *options.svg_file,
        plan_svg(plan, format("{}, {} tokens of context", engine->model_name(), engine->context_tokens()))));
  TRY_ASSIGN(const PlanSpeed speed, predict_speed(*engine, options, &cancel_flag()));
  const int code = plan.fits() ? kExitOk : kExitConfig;
  if (options.json) {
    TRY(write_stdout(to_json_text(plan_json(*engine, speed), 2) + "\n"));
    return code;
  }
  std::string text;
  for (const std::string& line : engine->describe()) text += line + "\n";
  text += format("\n{}\n", plan.table());
  if (!plan.fits()) text += plan.advice() + "\n";
  text += left_out_text(engine->topology().memory_only());
  if (engine->nodes() > 1) text += placement_text(engine->placement());
  TRY(write_stdout(text + "\n" + speed.text() + cold_text(*engine, options.speed.disk_bandwidth)));
  return code;
}

}  // namespace cpuinfer::tools
