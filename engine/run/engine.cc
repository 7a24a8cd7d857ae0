#include "engine/run/engine.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/check.h"
#include "base/format.h"
#include "engine/load/fingerprint.h"
#include "engine/load/packed_loader.h"
#include "engine/load/synthetic.h"
#include "numa/page_taking.h"

namespace cpuinfer::run {
Result<void> Engine::load(const load::LoadOptions& options) {
  if (team_ == nullptr)
    return fail(ErrorCode::kUsage, "this is the plan of a machine that is not there: it can be looked at, not loaded");
  TRY(plan_.check());
  if (options_.stream_weights && !packed_)
    return fail(ErrorCode::kUsage, "a synthetic model has no file to stream weights from: pack it first");
  // Before the weights: they may take minutes.
  if (!options_.kv_store.directory.empty()) TRY(open_kv_store());
  if (checkpoint_) {
    load::LoadOptions load_options = options;
    load_options.statistics = &load_statistics_;
    const auto stays = [&](const model::WeightSpec& spec) { return !load::is_streamed(config(), stream_plan_, spec); };
    TRY_ASSIGN(weights_, load::allocate_weights(*model_, team_->nodes(), topology_, stays));
    if (packed_) {
      std::vector<load::PackedPart> parts;
      for (const load::PackedPart& part : packed_layout_.parts)
        if (stays(packed_layout_.weights_of(part).front().spec)) parts.push_back(part);
      TRY(load::read_packed(*packed_, packed_layout_, parts, *team_, topology_, load_options));
    } else {
      TRY(load::read_weights(*model_, *checkpoint_, *team_, topology_, load_options));
    }
    if (options.statistics != nullptr) *options.statistics = load_statistics_;
  } else {
    TRY_ASSIGN(weights_, load::fill_synthetic(*model_, options_.synthetic->seed, *team_, topology_, options));
  }
  if (stream_plan_.streams()) {
    TRY_ASSIGN(weight_stream_, load::WeightStream::create(config(), stream_plan_, *packed_, packed_layout_, *team_,
                                                          topology_, options_.stream_backend));
    model_->set_weight_source(weight_stream_.get());
  }
  TRY_ASSIGN(kv_, model::KvCache::create(config(), kv_pages_, team_->nodes(), topology_));
  if (limits_.cold_pages) {
    TRY_ASSIGN(cold_stream_, ColdStream::create(config(), KvStore::shape(config()), team_->nodes(), topology_));
  }
  TRY_ASSIGN(workspace_, model::Workspace::create(config(), limits_, placement_, team_->worker_nodes(), topology_));
  TRY(take_pages_of_memory(options));
  if (kv_store_) {
    kv_store_->attach({.weights = packed_ ? packed_->fingerprint() : load::fingerprint_weights(*model_, *team_),
                       .numerics = kernels::profile_name(kernels_.profile)},
                      config(), *kv_);
  }
  batch_.tokens.reserve(limits_.rows);
  batch_.sequences.reserve(limits_.sequences);
  batch_.logit_rows.reserve(limits_.logit_rows);
  step_logits_.reserve(limits_.sequences);
  append_logits_.reserve(limits_.logit_rows);
  return {};
}

Result<void> Engine::take_pages_of_memory(const load::LoadOptions& options) {
  std::vector<numa::NodeSlice> slices;
  // Slots of streamed weights too: the system takes as long to give a page as the disk to fill it.
  if (weight_stream_)
    for (const numa::NodeBuffer* const buffer : weight_stream_->memory())
      for (const numa::NodeSlice& slice : buffer->slices()) slices.push_back(slice);
  std::vector<std::span<const numa::NodeBuffer>> memory = {kv_->memory(), workspace_->memory()};
  if (cold_stream_) memory.push_back(cold_stream_->memory());
  for (const std::span<const numa::NodeBuffer> buffers : memory)
    for (const numa::NodeBuffer& buffer : buffers)
      for (const numa::NodeSlice& slice : buffer.slices()) slices.push_back(slice);
  const auto started = std::chrono::steady_clock::now();
  if (!numa::take_pages(slices, *team_, {.progress = options.page_progress, .cancel = options.cancel}))
    return fail(ErrorCode::kInterrupted, "taking the memory of the KV cache was interrupted");
  page_statistics_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  page_statistics_.bytes = 0;
  for (const numa::NodeSlice& slice : slices) page_statistics_.bytes += slice.bytes;
  return {};
}

Result<Sequence> Engine::start_sequence(int64_t planned_tokens) {
  if (planned_tokens > context_tokens_) {
    return fail(ErrorCode::kUsage, format("{} tokens are planned and the context holds {}; raise --ctx or ask for less",
                                          planned_tokens, context_tokens_));
  }
  TRY_ASSIGN(const int64_t pages, admission_.admit(planned_tokens));
  Sequence sequence(*this, planned_tokens, pages);
  if (kv_store_) sequence.chain_ = kv_store_->start_chain(sequence.frequencies_);
  return sequence;
}

namespace {
constexpr int kMostRecomputed = 64;
}

Result<void> Engine::append(Sequence& sequence, std::span<const TokenId> tokens, const AppendOptions& options) {
  const int64_t total = static_cast<int64_t>(tokens.size());
  TRY(check_length(sequence, total));
  const int64_t limit =
      options.logit_rows == LogitRows::kAll ? std::min(limits_.rows, limits_.logit_rows) : limits_.rows;
  int64_t done = 0;
  while (done < total) {
    if (options.cancel != nullptr && options.cancel->load(std::memory_order_relaxed))
      return fail(ErrorCode::kInterrupted, format("interrupted after {} of {} tokens", done, total));
    StepRequest request = {&sequence, tokens.subspan(done, std::min(limit, total - done)), options.logit_rows};
    const int64_t count = static_cast<int64_t>(request.tokens.size());
    if (request.logit_rows == LogitRows::kLast && done + count < total) request.logit_rows = LogitRows::kNone;
    Result<std::span<const StepLogits>> stepped = step({&request, 1});
    if (!stepped && !lost_tokens_.empty() && recomputing_ < kMostRecomputed) {
      // A damaged page took some tokens along: they are computed again, and then this step. So are those before it that
      // turn out to be damaged, but a disk that damages everything is left to whoever asked.
      const std::vector<TokenId> lost = std::exchange(lost_tokens_, {});
      ++recomputing_;
      const Result<void> computed = append(sequence, lost, {.logit_rows = LogitRows::kNone, .cancel = options.cancel});
      --recomputing_;
      TRY(computed);
      continue;
    }
    TRY_ASSIGN(const std::span<const StepLogits> logits, std::move(stepped));
    done += count;
    if (const int rows = logits[0].rows(); options.logits && rows > 0) {
      append_logits_.clear();
      for (int row = 0; row < rows; ++row) append_logits_.push_back(logits[0][row]);
      options.logits(done - rows, append_logits_);
    }
    if (options.progress) options.progress(done, total);
  }
  return {};
}

Result<void> Engine::check_length(const Sequence& sequence, int64_t more) const {
  const int64_t planned = sequence.planned_tokens();
  if (sequence.length() + more <= planned) return {};
  if (planned < context_tokens_)
    return fail(ErrorCode::kUsage,
                format("{} tokens do not fit into a sequence that was started for {} and already holds {}; start it "
                       "for more",
                       more, planned, sequence.length()));
  return fail(ErrorCode::kUsage, format("{} tokens do not fit into a context of {} that already holds {}; raise --ctx",
                                        more, planned, sequence.length()));
}

Result<void> Engine::take_pages(Sequence& sequence, int64_t length, std::span<const StepRequest> step) {
  while (static_cast<int64_t>(sequence.pages_.size()) < model::KvCache::pages_for(length)) {
    // What others have given back may still be on its way to the disk.
    if (kv_store_ && kv_->free_pages() == 0) kv_store_->settle(true);
    if (cold_stream_ && kv_->free_pages() == 0) TRY(make_room(step));
    const Result<int> page = kv_->allocate(sequence.pages_);
    ENSURE(page.has_value(), "a sequence was promised its pages when it was started");
    sequence.pages_.push_back(*page);
  }
  return {};
}

Result<std::span<const StepLogits>> Engine::step(std::span<const StepRequest> requests) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point started = Clock::now();
  ENSURE(kv_.has_value() && workspace_.has_value(), "load() comes before steps");
  ENSURE(!requests.empty() && static_cast<int>(requests.size()) <= limits_.sequences,
         "a step has at least one request and at most limits().sequences");
  for (const StepRequest& request : requests)
    TRY(check_length(*request.sequence, static_cast<int64_t>(request.tokens.size())));
  if (cold_stream_) TRY(bring_back(requests));
  for (const StepRequest& request : requests) {
    const int64_t count = static_cast<int64_t>(request.tokens.size());
    TRY(take_pages(*request.sequence, request.sequence->length() + count, requests));
    request.sequence->last_step_ = steps_;
  }
  ++steps_;

  batch_.tokens.clear();
  batch_.sequences.clear();
  batch_.logit_rows.clear();
  step_logits_.clear();
  for (const StepRequest& request : requests) {
    const int first = batch_.rows();
    const int rows = static_cast<int>(request.tokens.size());
    const int wanted = request.logit_rows == LogitRows::kAll ? rows : request.logit_rows == LogitRows::kLast ? 1 : 0;
    ENSURE(rows > 0 && first + rows <= limits_.rows, "every request has tokens, all together at most limits().rows");
    ENSURE(static_cast<int>(batch_.logit_rows.size()) + wanted <= limits_.logit_rows,
           "rows of logits are at most limits().logit_rows");
    for (const TokenId token : request.tokens) {
      ENSURE(token >= 0 && token < config().vocab, "token ids are checked against the vocabulary where they enter");
      batch_.tokens.push_back(token);
    }
    batch_.sequences.push_back(
        {.first_row = first,
         .rows = rows,
         .start_position = request.sequence->length(),
         .pages = request.sequence->pages_,
         .cold_superblocks = static_cast<int>(request.sequence->cold_tokens() / model::kSuperblockTokens),
         .rope = &request.sequence->frequencies_});
    const model::Rows<float> logits = {workspace_->logits[static_cast<int64_t>(batch_.logit_rows.size())],
                                       workspace_->logits.stride};
    step_logits_.emplace_back(logits, wanted, config().vocab);
    for (int row = first + rows - wanted; row < first + rows; ++row) batch_.logit_rows.push_back(row);
  }
  const StepKind kind = batch_.rows() == static_cast<int>(requests.size()) ? StepKind::kDecode : StepKind::kPrefill;
  if (kind != counted_kind_) collect_counters();
  counted_kind_ = kind;
  if (cold_stream_) begin_cold(requests);
  Result<void> computed = model_->forward({*team_, kernels_}, batch_, *kv_, *workspace_);
  if (cold_stream_) {
    const Result<void> read = end_cold(requests);
    if (computed) computed = read;
  }
  if (!computed) {
    for (const StepRequest& request : requests) request.sequence->clear_beyond_end();
    return std::unexpected(std::move(computed).error());
  }
  for (const StepRequest& request : requests) {
    std::vector<TokenId>& tokens = request.sequence->tokens_;
    tokens.insert(tokens.end(), request.tokens.begin(), request.tokens.end());
  }
  store_pages(requests);
  StepProfile& profile = profiles_[static_cast<int>(kind)];
  ++profile.steps;
  profile.tokens += batch_.rows();
  profile.ns += std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - started).count();
  return step_logits_;
}

Result<void> Engine::fabricate_context(Sequence& sequence, int64_t length) {
  ENSURE(kv_.has_value(), "load() comes before contexts");
  ENSURE(kv_store_ == nullptr, "what is made up is not stored");
  ENSURE(sequence.length() % kernels::kLeafTokens == 0 && sequence.length() <= length,
         "a context is lengthened from the end of a page");
  TRY(check_length(sequence, length - sequence.length()));
  TRY(take_pages(sequence, length, {}));
  const int64_t first_page = model::KvCache::pages_for(sequence.length());
  const int64_t pages = model::KvCache::pages_for(length) - first_page;
  const size_t half = static_cast<size_t>(kernels::page_half_elements(kv_->head_dim_padded()));
  team_->run([&](numa::Worker& worker) {
    const numa::Range share = worker.share(int64_t{config().layers} * config().kv_heads * pages);
    for (int64_t item = share.begin; item < share.end; ++item) {
      const int64_t head = item / pages;  // of all layers
      const int64_t page = first_page + item % pages;
      const int layer = static_cast<int>(head / config().kv_heads),
                kv_head = static_cast<int>(head % config().kv_heads);
      const uint64_t key = load::random_bits(static_cast<uint64_t>(head), static_cast<uint64_t>(page));
      // Keys come out of a norm, so their elements are about 1; values are sums of many terms, and smaller.
      load::fill_random(key, 0, {kv_->keys(layer, kv_head, sequence.pages_[page]), half});
      load::fill_random(~key, -2, {kv_->values(layer, kv_head, sequence.pages_[page]), half});
    }
  });
  const int slot = static_cast<int>(length % kernels::kLeafTokens);
  if (pages > 0 && slot != 0) kv_->clear_from(sequence.pages_[first_page + pages - 1], slot);
  sequence.tokens_.resize(length);
  return {};
}

std::vector<std::vector<double>> Engine::expert_usage() const {
  ENSURE(workspace_.has_value(), "load() comes before steps");
  const model::ModelConfig& c = config();
  std::vector<std::vector<double>> usage(static_cast<size_t>(c.layers));
  for (int l = 0; l < c.layers; ++l) {
    if (!c.moe_layers[l]) continue;
    const int64_t* const counts = workspace_->expert_counts + int64_t{l} * c.experts;
    usage[l].assign(counts, counts + c.experts);
  }
  return usage;
}

Result<PlacementReport> Engine::measure_placement() {
  ENSURE(kv_.has_value() && workspace_.has_value(), "load() comes before measuring");
  std::vector<PlacedMemory> memory;
  model_->visit_weights([&](const model::WeightSpec& spec) {
    if (load::is_streamed(config(), stream_plan_, spec)) return;
    for (int node = 0; node < team_->nodes(); ++node) {
      if (spec.matrix != nullptr)
        memory.push_back({spec.purpose, node, spec.matrix->shard(node).data, spec.matrix->shard_bytes(node)});
      else
        memory.push_back({spec.purpose, node, spec.vector->on(node).data(), spec.vector->bytes()});
    }
  });
  const auto add = [&](const char* purpose, std::span<const numa::NodeBuffer> buffers) {
    for (const numa::NodeBuffer& buffer : buffers)
      for (const numa::NodeSlice& slice : buffer.slices())
        memory.push_back({purpose, slice.node, slice.data, slice.bytes});
  };
  if (weight_stream_)
    for (const numa::NodeBuffer* buffer : weight_stream_->memory()) add("streamed weights", {buffer, 1});
  add("KV cache", kv_->memory());
  add("workspace", workspace_->memory());
  return run::measure_placement(memory, *team_, topology_);
}

load::StreamStatistics Engine::stream_statistics() const {
  return weight_stream_ ? weight_stream_->statistics() : load::StreamStatistics{};
}

storage::Digest128 Engine::weights_fingerprint() {
  ENSURE(workspace_.has_value(), "load() comes before the fingerprint");
  if (!fingerprint_) fingerprint_ = packed_ ? packed_->fingerprint() : load::fingerprint_weights(*model_, *team_);
  return *fingerprint_;
}

void Engine::set_experts(int experts) {
  ENSURE(workspace_.has_value(), "load() comes before set_experts(): it allocates for the experts of prepare()");
  ENSURE(kv_store_ == nullptr, "pages are stored under the experts that a sequence began with");
  ENSURE(experts >= 1 && experts <= planned_experts_, "memory is planned for the most experts per token");
  model_->set_experts_per_token(experts);
}

// Moves what the workers have counted to the profile of the kind of steps that they counted.
void Engine::collect_counters() {
  ENSURE(workspace_.has_value(), "load() comes before counters");
  model::StepCounters sum{};
  const int64_t workers = static_cast<int64_t>(workspace_->workers.size());
  for (model::WorkerScratch& worker : workspace_->workers) {
    for (int phase = 0; phase < model::kPhases; ++phase) sum[phase] += worker.counters[phase];
    worker.counters = {};
  }
  model::StepCounters& phases = profiles_[static_cast<int>(counted_kind_)].phases;
  for (int phase = 0; phase < model::kPhases; ++phase) {
    sum[phase].busy_ns /= workers;
    sum[phase].wait_ns /= workers;
    phases[phase] += sum[phase];
  }
}

StepProfile Engine::profile(StepKind kind) {
  collect_counters();
  return profiles_[static_cast<int>(kind)];
}

void Engine::reset_profile() {
  collect_counters();
  profiles_ = {};
}

void Engine::set_counting(bool counting) {
  ENSURE(workspace_.has_value(), "load() comes before counters");
  for (model::WorkerScratch& worker : workspace_->workers) worker.counting = counting;
}

StepProfile& StepProfile::operator+=(const StepProfile& other) {
  for (int phase = 0; phase < model::kPhases; ++phase) phases[phase] += other.phases[phase];
  steps += other.steps;
  tokens += other.tokens;
  ns += other.ns;
  return *this;
}

}  // namespace cpuinfer::run
