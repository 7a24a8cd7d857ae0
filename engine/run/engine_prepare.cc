// From options to an engine that knows what it will do, and what it says about it. Reads no weights.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/format.h"
#include "base/log.h"
#include "engine/load/expert_usage.h"
#include "engine/model/rope_length.h"
#include "engine/run/engine.h"

namespace cpuinfer::run {
namespace {

Result<int64_t> choose_context(const model::ModelConfig& config, int64_t wanted) {
  const int64_t limit = model::position_limit(config);
  if (wanted == 0) return std::min(limit, kDefaultContextTokens);
  if (wanted < 0) return fail(ErrorCode::kUsage, format("--ctx is {}; it must be 1 or more", wanted));
  if (wanted > limit) {
    return fail(ErrorCode::kUsage,
                format("--ctx {} is over the {} positions that this model is made for ({}); {}", wanted, limit,
                       model::describe_rope(config), model::scaling_advice(config, wanted)));
  }
  return wanted;
}

// The last name of a path, also of "DIR/" and ".".
std::string last_name(const std::filesystem::path& directory) {
  std::error_code ignored;
  const std::filesystem::path absolute = std::filesystem::absolute(directory, ignored).lexically_normal();
  return (absolute.has_filename() ? absolute.filename() : absolute.parent_path().filename()).string();
}

// Models that promise more experts than their checkpoint has tensors: found out before anything is made for each.
// Of a packed file gate and up are one.
Result<void> check_tensor_count(const model::ModelConfig& config, const checkpoint::Checkpoint& checkpoint,
                                const std::optional<load::PackedFile>& packed) {
  const int64_t moe_layers = std::count(config.moe_layers.begin(), config.moe_layers.end(), true);
  const int64_t least = config.layers + (packed ? 2 : 3) * moe_layers * config.experts;
  const int64_t found = packed ? packed->weight_count() : static_cast<int64_t>(checkpoint.tensors().size());
  if (found >= least) return {};
  return fail(ErrorCode::kBadInput,
              format("{}: config.json says {} layers, {} of them with {} experts, which is at least {} tensors; the "
                     "checkpoint has {}: config.json and weights do not belong together",
                     checkpoint.directory().string(), config.layers, moe_layers, config.experts, least, found));
}

numa::MemoryLimit planned_memory(const numa::Topology& topology) {
  numa::MemoryLimit all{0, "the planned machine"};
  for (const numa::Node& node : topology.nodes()) all.bytes += node.free_bytes;
  return all;
}

Result<void> check_options(const EngineOptions& options) {
  if (options.chunk_tokens < 1 || options.chunk_tokens > 65536)
    return fail(ErrorCode::kUsage, format("--chunk is {}; it must be between 1 and 65536", options.chunk_tokens));
  if (!options.expert_usage_file.empty() && !options.whole_experts)
    return fail(ErrorCode::kUsage,
                "--expert-usage balances whole experts: give --placement expert too, or leave it out");
  if (options.stream_weights && options.whole_experts)
    return fail(ErrorCode::kUsage, "--weights stream has slices of experts on all nodes: leave out --placement expert");
  ENSURE(!(options.rope && options.rope_by_length), "one rope scaling is asked for, not two");
  ENSURE(options.logit_rows >= 1, "at least one row of logits is needed to choose a token");
  ENSURE(options.sequences >= 1 && options.kv_tokens >= 0, "a step has a sequence, the cache no negative size");
  return {};
}

Result<void> override_config(model::ModelConfig& config, const EngineOptions& options) {
  if (options.experts != 0) {
    if (config.experts == 0)
      return fail(ErrorCode::kUsage, format("--experts {}: this model is dense, it has no experts", options.experts));
    if (options.experts < 1 || options.experts > config.experts) {
      return fail(ErrorCode::kUsage,
                  format("--experts is {}; this model has {} experts, so it must be between 1 and {}", options.experts,
                         config.experts, config.experts));
    }
    config.experts_per_token = options.experts;
  }
  const double theta = config.rope.theta;
  if (options.rope) {
    constexpr double kMaxFactor = 1e6;  // as in config.json
    if (!(options.rope->factor >= 1 && options.rope->factor <= kMaxFactor))
      return fail(ErrorCode::kUsage, format("the factor of --rope-scaling is {}; it must be between 1 and {}",
                                            options.rope->factor, kMaxFactor));
    if (options.rope->type == model::RopeType::kDynamic && config.head_dim <= 2)
      return fail(ErrorCode::kUsage,
                  format("--rope-scaling dynamic needs a head_dim over 2; this model has {}", config.head_dim));
    config.rope = *options.rope;
    config.rope.theta = theta;
  }
  if (options.rope_by_length) {
    config.rope_by_length = model::rope_by_length(config);
    if (config.rope.type != model::RopeType::kDefault)
      log_warn(
          "--rope-scaling auto takes the place of the scaling in config.json ({}): sequences of up to {} tokens have "
          "none",
          model::describe(config.rope), config.rope_by_length->native_positions);
    config.rope = {};
    config.rope.theta = theta;
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::prepare(const EngineOptions& options) {
  TRY(check_options(options));
  const kernels::Isa machine = kernels::detect_isa();
  if (!kernels::covers(machine, kernels::Isa::kAvx2)) {
    return fail(ErrorCode::kUnsupported,
                "this CPU has no AVX2 and FMA, which cpuinfer needs (Intel since 2013, AMD since 2015)");
  }
  std::optional<checkpoint::Checkpoint> checkpoint;
  std::optional<load::PackedFile> packed;
  if (!options.synthetic) {
    TRY_ASSIGN(checkpoint, checkpoint::Checkpoint::open(options.model));
    if (checkpoint->is_packed()) {
      TRY_ASSIGN(packed, load::PackedFile::open(checkpoint->packed_path()));
    } else if (options.stream_weights) {
      return fail(ErrorCode::kUsage,
                  format("--weights stream reads packed weights and {0} has none: `cpuinfer pack --model {0} --output "
                         "NEWDIR` writes them, then give --model NEWDIR",
                         options.model.string()));
    }
  }
  TRY_ASSIGN(model::ModelConfig config,
             model::parse_model_config(checkpoint ? checkpoint->config() : options.synthetic->config));
  if (checkpoint) TRY(check_tensor_count(config, *checkpoint, packed));
  const int trained_experts = config.experts_per_token;
  TRY(override_config(config, options));
  TRY_ASSIGN(const int64_t context, choose_context(config, options.context_tokens));
  TRY_ASSIGN(numa::Selection use, options.planned_machine
                                      ? numa::select(*options.planned_machine, options.machine, options.threads)
                                      : numa::select_from_machine(options.machine, options.threads));

  std::unique_ptr<Engine> engine(new Engine(std::move(use.topology), options));
  engine->checkpoint_ = std::move(checkpoint);
  engine->packed_ = std::move(packed);
  engine->trained_experts_ = trained_experts;
  engine->planned_experts_ = config.experts_per_token;
  engine->context_tokens_ = context;
  if (engine->checkpoint_ && engine->checkpoint_->generation_config() != nullptr) {
    TRY_ASSIGN(engine->generation_defaults_, model::parse_generation_config(*engine->checkpoint_->generation_config()));
  }
  engine->isa_ = machine;
  if (!options.isa.empty()) {
    TRY_ASSIGN(engine->isa_, kernels::cap_isa(machine, options.isa));
  }
  const kernels::KernelRequest wanted = {.numerics = engine->options_.numerics, .gemm = engine->options_.gemm};
  TRY_ASSIGN(engine->layout_, numa::plan_team(engine->topology_, use.team));
  if (options.planned_machine) {
    TRY_ASSIGN(engine->kernels_, kernels::select_kernels(engine->isa_, wanted));
  } else {
    TRY_ASSIGN(engine->kernels_, kernels::select_fastest_kernels(engine->isa_, wanted));
    TRY_ASSIGN(engine->team_, numa::Team::create(engine->topology_, use.team));
  }
  const int sequences = options.sequences;
  // So many pages that the plan refuses them are still to be shown in its table.
  const int64_t pages = options.kv_tokens != 0 ? ceil_div(options.kv_tokens, int64_t{kernels::kLeafTokens})
                                               : int64_t{sequences} * model::KvCache::pages_for(context);
  engine->kv_pages_ = static_cast<int>(std::min<int64_t>(pages, INT32_MAX));
  engine->planned_pages_ = engine->kv_pages_;
  engine->admission_ = Admission(engine->planned_pages_, kernels::kLeafTokens);
  const int64_t chunk = std::min<int64_t>(options.chunk_tokens, context);
  engine->limits_ = {.rows = static_cast<int>(std::max<int64_t>(chunk, sequences)),
                     .logit_rows = std::max(options.logit_rows, sequences),
                     .sequences = sequences,
                     .context_tokens = int64_t{engine->kv_pages_} * kernels::kLeafTokens};
  numa::MemoryLimit available = options.planned_machine
                                    ? planned_memory(engine->topology_)
                                    : numa::available_memory(load::loader_stack_bytes(engine->workers()));
  if (options.memory_limit_bytes > 0 && options.memory_limit_bytes < available.bytes)
    available = {options.memory_limit_bytes, "--memory-limit"};
  engine->plan_request_ = {.limits = engine->limits_,
                           .kv_pages = engine->kv_pages_,
                           .sequences = sequences,
                           .context_limit = model::position_limit(config),
                           .worker_nodes = engine->layout_.worker_nodes(),
                           .stream_weights = options.stream_weights,
                           .whole_experts = options.whole_experts && config.experts > 0};
  if (!options.expert_usage_file.empty()) {
    TRY_ASSIGN(engine->plan_request_.expert_usage, load::read_expert_usage(options.expert_usage_file, config));
  }
  TRY_ASSIGN(load::PlannedModel planned, load::plan_model(config, engine->plan_request_, engine->topology_, available));
  if (options.kv_on_disk && !planned.plan.fits()) TRY(engine->plan_cold_pages(available, planned));
  engine->placement_ = std::move(planned.placement);
  engine->model_ = std::move(planned.model);
  engine->plan_ = std::move(planned.plan);
  engine->stream_plan_ = planned.stream;
  if (engine->packed_) {
    TRY_ASSIGN(engine->packed_layout_, engine->packed_->layout_for(*engine->model_));
  } else if (engine->checkpoint_) {
    TRY(load::check_tensors(*engine->model_, *engine->checkpoint_));
  }
  return engine;
}

std::string Engine::model_name() const {
  return checkpoint_ ? last_name(checkpoint_->directory()) : options_.synthetic->name;
}

Result<load::PlannedModel> Engine::plan_placed(bool whole_experts) const {
  load::PlanRequest request = plan_request_;
  request.whole_experts = whole_experts && config().experts > 0;
  if (whole_experts) request.stream_weights = false;
  return load::plan_model(config(), request, topology_, plan_.available);
}

std::vector<std::string> Engine::describe() const {
  const model::ModelConfig& c = config();
  std::vector<std::string> lines;
  if (checkpoint_) {
    lines.push_back(format("model     {} ({}), {} layers, {} {}weights", model_name(), c.architecture, c.layers,
                           format_bytes(checkpoint_->total_bytes()), packed_ ? "packed " : ""));
  } else {
    lines.push_back(format("model     {} ({}), {} layers, random weights from seed {}", model_name(), c.architecture,
                           c.layers, options_.synthetic->seed));
  }
  if (c.experts > 0) {
    lines.push_back(
        format("experts   {} of {} per token{}", c.experts_per_token, c.experts,
               c.experts_per_token != trained_experts_ ? format(" (config.json says {})", trained_experts_) : ""));
  }
  if (stream_plan_.streams()) lines.push_back(describe_streaming());
  lines.push_back(
      format("context   {} tokens{}, KV cache {} ({} per token){}", context_tokens_,
             limits_.sequences == 1 ? "" : format(", {} sequences at a time", limits_.sequences),
             format_bytes(plan_.kv_bytes_per_token * plan_.context_tokens), format_bytes(plan_.kv_bytes_per_token),
             limits_.cold_pages
                 ? format("; up to {} more on disk, read again for every token",
                          format_bytes(plan_.kv_bytes_per_token * kernels::kLeafTokens * (planned_pages_ - kv_pages_)))
                 : ""));
  lines.push_back(format("rope      {}", model::describe_rope(c)));
  lines.push_back(format("threads   {} on {} node{}{}", workers(), nodes(), nodes() == 1 ? "" : "s",
                         options_.planned_machine ? " of a machine that is not there" : ""));
  lines.push_back(format("kernels   {} (numerics {}, version {}), elementwise {}", kernels_.describe_gemm(),
                         kernels::profile_name(kernels_.profile), model::kNumericsVersion, kernels_.elementwise->name));
  return lines;
}

double Engine::streamed_bytes_per_token() const {
  const model::ModelConfig& c = config();
  double bytes = 0;
  model_->visit_weights([&](const model::WeightSpec& spec) {
    if (!load::is_streamed(c, stream_plan_, spec)) return;
    bytes += static_cast<double>(spec.matrix->bytes()) * (spec.expert >= 0 ? expert_miss_rate() : 1.0) *
             (spec.expert >= 0 ? static_cast<double>(c.experts_per_token) / c.experts : 1.0);
  });
  return bytes;
}

double Engine::expert_miss_rate() const {
  if (stream_plan_.expert_slots == 0) return 0;
  const auto moe_layers = std::count(config().moe_layers.begin(), config().moe_layers.end(), true);
  const double kept = stream_plan_.expert_slots - stream_plan_.spare_slots;
  return 1 - kept / (static_cast<double>(moe_layers) * config().experts);
}

std::string Engine::describe_streaming() const {
  const model::ModelConfig& c = config();
  std::string text = "weights   streamed:";
  const auto add = [&](const std::string& what) { text += format("{} {}", text.ends_with(':') ? "" : ",", what); };
  if (stream_plan_.attention_layers > 0)
    add(format("attention of {} of {} layers", stream_plan_.attention_layers, c.layers));
  const auto moe_layers = std::count(c.moe_layers.begin(), c.moe_layers.end(), true);
  if (stream_plan_.mlp_layers > 0)
    add(format("MLPs of {} of {} layers", stream_plan_.mlp_layers, c.layers - moe_layers));
  if (stream_plan_.expert_slots > 0)
    add(format("experts, {} of {} in memory", stream_plan_.expert_slots - stream_plan_.spare_slots,
               moe_layers * c.experts));
  return format("{}; {:.2f} GB are read for a token if experts are equally likely", text,
                streamed_bytes_per_token() / 1e9);
}

const checkpoint::Checkpoint& Engine::checkpoint() const {
  ENSURE(checkpoint_.has_value(), "a synthetic model has no checkpoint");
  return *checkpoint_;
}

int64_t Engine::decode_weight_bytes() const {
  // Every matrix once, of the experts only those that a token uses; of an untied embedding one row, which is nothing.
  const model::ModelConfig& c = config();
  int64_t bytes = 0;
  model_->visit_weights([&](const model::WeightSpec& spec) {
    if (spec.matrix == nullptr || spec.purpose == "embedding") return;
    for (int node = 0; node < spec.matrix->nodes(); ++node) {
      const int64_t shard = spec.matrix->shard_bytes(node);
      bytes += spec.purpose == "experts" ? shard * c.experts_per_token / c.experts : shard;
      if (spec.matrix->split().is_replicated()) break;  // a node's own copy is read by its workers, all count once
    }
  });
  return bytes;
}

}  // namespace cpuinfer::run
