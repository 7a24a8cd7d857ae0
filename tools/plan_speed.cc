#include "tools/plan_speed.h"

#include <algorithm>
#include <string_view>

#include "base/format.h"
#include "base/types.h"
#include "bench/barriers.h"
#include "bench/disk.h"
#include "bench/read.h"

namespace cpuinfer::tools {
namespace {

constexpr double kCoreBandwidth = 15e9;  // as docs/scaling.md assumes
constexpr double kMeetingSeconds = 1.5e-6;

// Under half a second, most of it for taking the memory.
constexpr bench::SweepEffort kEffort = {
    .coarse_seconds = 0.002, .coarse_samples = 1, .fine_seconds = 0.01, .fine_samples = 3, .quick = true};

// What is read of each node: more than caches hold, less than what is free. 0: there is not the memory.
int64_t buffer_bytes(const run::Engine& engine) {
  constexpr int64_t kPiece = 64_KiB;
  const int64_t workers = ceil_div(engine.workers(), engine.nodes());
  int64_t room = engine.plan().available.bytes / 8 / engine.nodes();
  for (int node = 0; node < engine.nodes(); ++node) room = std::min(room, engine.topology().home(node).free_bytes / 8);
  const int64_t bytes = std::min(std::max(int64_t{64_MiB}, workers * int64_t{8_MiB}), room) / kPiece * kPiece;
  return bytes < (workers + 1) * kPiece ? 0 : bytes;
}

// Bytes per second of one node, read by its workers while the others read theirs; nothing if there is not the memory.
Result<std::optional<double>> measure_bandwidth(run::Engine& engine, const std::atomic<bool>* cancel) {
  const int64_t bytes = buffer_bytes(engine);
  if (bytes == 0) return std::nullopt;
  auto buffers = bench::make_read_buffers(engine.team(), engine.topology(), bytes, numa::Pages::kHuge);
  if (!buffers) return std::nullopt;
  TRY_ASSIGN(const bench::ReadSweep sweep,
             bench::sweep_read(engine.team(), {&buffers->memory, 1}, kernels::detect_isa(), kEffort,
                               {.cancel = cancel, .progress = {}}));
  return sweep.winner().rate.all / engine.nodes();
}

void measure_meetings(run::Engine& engine, load::MachineSpeed& speed) {
  for (const bench::BarrierFigure& figure : bench::measure_barriers(engine.team(), 0.01)) {
    if (figure.name == std::string_view("barrier")) speed.meeting_seconds = figure.nanoseconds * 1e-9;
    if (figure.name == std::string_view("barrier in node")) speed.node_meeting_seconds = figure.nanoseconds * 1e-9;
  }
}

// Fills in speed.machine, or says in speed.missing why not.
Result<void> choose_machine(run::Engine& engine, const PlanOptions& options, const std::atomic<bool>* cancel,
                            PlanSpeed& speed) {
  const SpeedOptions& given = options.speed;
  load::MachineSpeed& machine = speed.machine;
  const bool here = options.topology.empty();
  machine.core_bandwidth = given.core_bandwidth.value_or(kCoreBandwidth);
  machine.remote_bandwidth = given.remote_bandwidth.value_or(0);
  machine.meeting_seconds = machine.node_meeting_seconds = given.meeting.value_or(kMeetingSeconds);
  if (given.node_bandwidth) {
    machine.node_bandwidth = *given.node_bandwidth;
  } else if (here) {
    TRY_ASSIGN(const std::optional<double> measured, measure_bandwidth(engine, cancel));
    if (!measured) {
      speed.missing = "speed: there is not the memory to measure this machine's bandwidth; --node-bandwidth gives it";
      return {};
    }
    machine.node_bandwidth = *measured;
    speed.bandwidth_measured = true;
    const double share = *measured * engine.nodes() / engine.workers();
    if (!given.core_bandwidth) machine.core_bandwidth = std::max(machine.core_bandwidth, share);
  } else {
    speed.missing = "speed: --node-bandwidth RATE, such as 250GB/s, has it predicted";
    return {};
  }
  if (here && !given.meeting) {
    measure_meetings(engine, machine);
    speed.meeting_measured = true;
  }
  return {};
}

Result<StreamSpeed> predict_streaming(run::Engine& engine, const PlanOptions& options,
                                      const std::atomic<bool>* cancel) {
  StreamSpeed speed{.disk_bandwidth = options.speed.disk_bandwidth.value_or(0),
                    .bytes_per_token = engine.streamed_bytes_per_token()};
  if (options.speed.disk_bandwidth || !options.topology.empty() || !options.synthetic.empty()) return speed;
  constexpr double kSeconds = 0.5;
  const auto disk = bench::measure_disk(
      engine.topology(), {.model = engine.checkpoint().directory(), .directory = {}, .seconds = kSeconds},
      {.cancel = cancel, .progress = {}});
  if (!disk && disk.error().code == ErrorCode::kInterrupted) return std::unexpected(disk.error());
  if (!disk) return speed;  // a file too small to be read for so long
  speed.disk_bandwidth = disk->winner().bytes_per_second;
  speed.measured = true;
  return speed;
}

std::string context_name(int64_t tokens) {
  return tokens >= 1024 && tokens % 1024 == 0 ? format("{}k", tokens / 1024) : format("{}", tokens);
}

std::string gigabytes(double rate) { return format("{:.4g} GB/s", rate * 1e-9); }

}  // namespace

Result<PlanSpeed> predict_speed(run::Engine& engine, const PlanOptions& options, const std::atomic<bool>* cancel) {
  PlanSpeed speed;
  speed.nodes = engine.nodes();
  speed.positions = engine.plan_request().context_limit;
  if (engine.stream_plan().streams()) {
    TRY_ASSIGN(speed.stream, predict_streaming(engine, options, cancel));
  }
  TRY(choose_machine(engine, options, cancel, speed));
  if (!speed.missing.empty()) return speed;

  std::vector<int64_t> contexts = {0, 32768, 131072, 262144, engine.context_tokens()};
  std::ranges::sort(contexts);
  contexts.erase(std::ranges::unique(contexts).begin(), contexts.end());
  for (const int64_t context : contexts) speed.contexts.push_back({context, context > speed.positions, {}});

  const bool has_experts = engine.config().experts > 0;
  for (const bool whole : {false, true}) {
    if (whole && (!has_experts || engine.plan_request().stream_weights)) break;
    TRY_ASSIGN(const load::PlannedModel planned, engine.plan_placed(whole));
    const std::vector<load::DecodePrediction> predictions =
        load::predict_decode(planned, engine.plan_request(), speed.machine, contexts);
    const int64_t largest = planned.plan.largest_context;  // 0: not even the weights fit
    for (size_t i = 0; i < contexts.size(); ++i) {
      PlacedSpeed& placed =
          speed.contexts[i].placed.emplace_back(PlacedSpeed{whole ? "expert" : "slice", std::nullopt});
      if (largest > 0 && contexts[i] <= largest) placed.decode = predictions[i];
    }
    if (whole) {
      speed.whole_expert_share = load::whole_expert_share(planned);
      speed.chosen_experts = planned.model->config().experts_per_token;
    }
  }
  return speed;
}

std::string PlanSpeed::stream_text() const {
  if (!stream) return {};
  std::string text = format("streaming: {:.2f} GB of the disk for a token if experts are equally likely",
                            stream->bytes_per_token / 1e9);
  if (stream->disk_bandwidth == 0) return text + "; --disk-bandwidth RATE has its speed predicted\n";
  return text + format(", at {} ({}) {:.2g} tokens/s at the most\n", gigabytes(stream->disk_bandwidth),
                       stream->measured ? "measured now" : "given", stream->tokens_per_second());
}

std::string PlanSpeed::text() const {
  if (contexts.empty()) return stream_text() + missing + "\n";
  std::string text = format(
      "decode of one sequence, computed from {} of a node ({}), {} of a core, meetings of {:.2g} us{}",
      gigabytes(machine.node_bandwidth), bandwidth_measured ? "measured now" : "given",
      gigabytes(machine.core_bandwidth), machine.meeting_seconds * 1e6, meeting_measured ? " (measured now)" : "");
  if (nodes > 1 && machine.remote_bandwidth > 0)
    text += format(", {} from other nodes", gigabytes(machine.remote_bandwidth));
  text += format("\n{:<10}", "context");
  for (const PlacedSpeed& placed : contexts[0].placed)
    text += format("{:>20}{:>10}{:>12}", placed.policy + ": tokens/s", "reads at", "meetings");
  text += "\n";
  for (const ContextSpeed& row : contexts) {
    text += format("{:<10}", context_name(row.context_tokens));
    if (row.beyond_positions) {
      text += format("  over the {} positions that this model is made for, see --rope-scaling\n", positions);
      continue;
    }
    for (const PlacedSpeed& placed : row.placed) {
      if (placed.decode)
        text += format("{:>20.1f}{:>8.0f} %{:>9.2f} ms", placed.decode->tokens_per_second(),
                       100 * placed.decode->bandwidth_share, 1e3 * placed.decode->meeting_seconds);
      else
        text += format("{:>42}", "does not fit");
    }
    text += "\n";
  }
  text += "reads at: of all nodes' bandwidth, while reading; meetings: in which workers wait for each other\n";
  if (whole_expert_share && nodes > 1)
    text += format(
        "whole experts: of {} chosen the fullest of {} nodes has {:.2f} on average, so they are read at {:.0f} % of "
        "the bandwidth at most\n",
        chosen_experts, nodes, chosen_experts / (nodes * *whole_expert_share), 100 * *whole_expert_share);
  if (nodes > 1 && machine.remote_bandwidth == 0)
    text += "activations of other nodes are not counted; --remote-bandwidth RATE has them counted\n";
  return text + stream_text();
}

Json PlanSpeed::json() const {
  Json json;
  if (stream) {
    Json streaming;
    streaming.set("bytes_per_token", stream->bytes_per_token);
    if (stream->disk_bandwidth > 0) {
      streaming.set("disk_bytes_per_second", stream->disk_bandwidth);
      streaming.set("disk_measured", stream->measured);
      streaming.set("tokens_per_second", stream->tokens_per_second());
    }
    json.set("streaming", std::move(streaming));
  }
  if (contexts.empty()) {
    json.set("missing", missing);
    return json;
  }
  json.set("node_bytes_per_second", machine.node_bandwidth);
  json.set("bandwidth_measured", bandwidth_measured);
  json.set("core_bytes_per_second", machine.core_bandwidth);
  json.set("remote_bytes_per_second", machine.remote_bandwidth > 0 ? Json(machine.remote_bandwidth) : Json());
  json.set("meeting_seconds", machine.meeting_seconds);
  json.set("node_meeting_seconds", machine.node_meeting_seconds);
  json.set("meeting_measured", meeting_measured);
  json.set("whole_expert_share", whole_expert_share ? Json(*whole_expert_share) : Json());
  Json rows{Json::Array{}};
  for (const ContextSpeed& row : contexts) {
    Json entry;
    entry.set("context_tokens", row.context_tokens);
    entry.set("beyond_positions", row.beyond_positions);
    for (const PlacedSpeed& placed : row.placed) {
      Json values;
      values.set("fits", placed.decode.has_value());
      if (placed.decode) {
        values.set("tokens_per_second", placed.decode->tokens_per_second());
        values.set("bytes_per_token", placed.decode->bytes);
        values.set("reading_seconds", placed.decode->reading_seconds);
        values.set("meeting_seconds", placed.decode->meeting_seconds);
        values.set("bandwidth_share", placed.decode->bandwidth_share);
      }
      entry.set(placed.policy, std::move(values));
    }
    rows.push_back(std::move(entry));
  }
  json.set("contexts", std::move(rows));
  return json;
}

}  // namespace cpuinfer::tools
