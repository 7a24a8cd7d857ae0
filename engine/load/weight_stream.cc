#include "engine/load/weight_stream.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/format.h"
#include "engine/load/fingerprint.h"
#include "engine/load/loading.h"

namespace cpuinfer::load {
namespace {

using model::ExpertSlots;
using model::LayerPart;
using storage::Digest128;

constexpr int64_t kRequestBytes = 1_MiB;
constexpr int kMostRequests = 128;
// A step reads the experts of the next layer ahead if each is chosen by so many rows on average.
constexpr int kRowsToReadAhead = 4;

}  // namespace

WeightStream::WeightStream(const model::ModelConfig& config, const PackedFile& file, const PackedLayout& layout,
                           storage::IoQueue queue, int workers)
    : file_(file),
      layout_(layout),
      moe_layers_(config.moe_layers),
      experts_(config.experts),
      experts_per_token_(config.experts_per_token),
      queue_(std::move(queue)),
      digests_(static_cast<size_t>(workers)) {}

WeightStream::~WeightStream() { drain(); }

Result<std::unique_ptr<WeightStream>> WeightStream::create(const model::ModelConfig& config, const StreamPlan& plan,
                                                           const PackedFile& file, const PackedLayout& layout,
                                                           numa::Team& team, const numa::Topology& topology,
                                                           storage::IoBackend backend) {
  TRY_ASSIGN(storage::IoQueue queue, storage::IoQueue::create(kMostRequests, backend));
  std::unique_ptr<WeightStream> stream(new WeightStream(config, file, layout, std::move(queue), team.workers()));
  StreamedParts parts = streamed_parts(layout);
  const auto ring = [](int streamed_layers) { return streamed_layers > 0 ? kRingSlots : 0; };
  TRY(stream->add_slots(kAttention, std::move(parts.attention), ring(plan.attention_layers), topology));
  TRY(stream->add_slots(kMlp, std::move(parts.mlp), ring(plan.mlp_layers), topology));
  TRY(stream->add_slots(kExpert, std::move(parts.expert), plan.expert_slots, topology));
  if (plan.expert_slots > 0) {
    stream->cache_.emplace(config.moe_layers, config.experts, plan.expert_slots, plan.spare_slots);
    stream->used_.reserve(static_cast<size_t>(config.experts));
    stream->expert_parts_.assign(static_cast<size_t>(config.layers) * config.experts, -1);
  }
  for (Slots& slots : stream->slots_) slots.layer_parts.assign(static_cast<size_t>(config.layers), -1);
  for (size_t p = 0; p < layout.parts.size(); ++p) {
    const PackedPart& part = layout.parts[p];
    if (!is_streamed(config, plan, layout.weights_of(part).front().spec)) continue;
    if (part.expert >= 0) {
      stream->expert_parts_[static_cast<size_t>(part.layer) * config.experts + part.expert] = static_cast<int>(p);
      continue;
    }
    Slots& slots = stream->slots_[part.purpose == "attention" ? kAttention : kMlp];
    slots.layer_parts[part.layer] = static_cast<int>(p);
    slots.turns.push_back(static_cast<int>(p));
  }
  const size_t most = 2 * kRingSlots + static_cast<size_t>(plan.expert_slots);
  stream->jobs_.resize(most);
  for (size_t i = most; i > 0; --i) stream->free_jobs_.push_back(static_cast<int>(i - 1));
  stream->waiting_.resize(most);
  stream->arrivals_.reserve(most);
  for (WorkerDigests& worker : stream->digests_) worker.sums.resize(most);
  return stream;
}

Result<void> WeightStream::add_slots(Kind kind, PartReads reads, int count, const numa::Topology& topology) {
  Slots& slots = slots_[kind];
  slots.reads = std::move(reads);
  slots.ready.assign(static_cast<size_t>(count), 0);
  if (count == 0) return {};
  for (size_t node = 0; node < slots.reads.slot_bytes.size(); ++node) {
    TRY_ASSIGN(numa::NodeBuffer buffer,
               numa::NodeBuffer::allocate(count * slots.reads.slot_bytes[node], static_cast<int>(node), topology));
    slots.memory.push_back(std::move(buffer));
  }
  return {};
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading: worker 0, while the others wait.

void WeightStream::read(Kind kind, int part, int slot) {
  ENSURE(!free_jobs_.empty(), "there are as many jobs as slots");
  const int number = free_jobs_.back();
  free_jobs_.pop_back();
  jobs_[number] = {.kind = kind, .part = part, .slot = slot};
  waiting_[(first_waiting_ + waiting_count_++) % waiting_.size()] = number;
}

void WeightStream::ask_for_all() {
  if (cache_)
    while (const auto entry = cache_->next_read())
      read(kExpert, expert_parts_[static_cast<size_t>(entry->layer) * experts_ + entry->expert], entry->slot);
  for (const Kind kind : {kAttention, kMlp}) {
    Slots& slots = slots_[kind];
    if (slots.turns.empty()) continue;
    const int64_t count = static_cast<int64_t>(slots.ready.size());
    for (; slots.next_read < std::max<int64_t>(slots.use, 0) + count; ++slots.next_read) {
      const int64_t slot = slots.next_read % count;
      slots.ready[slot] = 0;
      read(kind, slots.turns[slots.next_read % static_cast<int64_t>(slots.turns.size())], static_cast<int>(slot));
    }
  }
  const int following = layer_ + 1;
  if (cache_ && reads_ahead_ && following < static_cast<int>(moe_layers_.size()) && moe_layers_[following])
    while (const auto entry = cache_->next_read_ahead(following))
      read(kExpert, expert_parts_[static_cast<size_t>(entry->layer) * experts_ + entry->expert], entry->slot);
  submit_requests();
}

void WeightStream::submit_requests() {
  while (waiting_count_ > 0 && queue_.in_flight() < queue_.depth()) {
    const int number = waiting_[first_waiting_];
    Job& job = jobs_[number];
    Slots& slots = slots_[job.kind];
    const PartReads::Extent& extent = slots.reads.extents[job.extent];
    const int64_t bytes = std::min(kRequestBytes, extent.bytes - job.offset);
    ++job.in_flight;
    queue_.submit({.descriptor = file_.file().descriptor(),
                   .offset = file_.data_offset() + layout_.parts[job.part].offset + extent.part_offset + job.offset,
                   .data = slots.memory[extent.node].data() + job.slot * slots.reads.slot_bytes[extent.node] +
                           extent.slot_offset + job.offset,
                   .bytes = bytes,
                   .tag = static_cast<uint64_t>(number)});
    job.offset += bytes;
    if (job.offset < extent.bytes) continue;
    job.offset = 0;
    if (++job.extent < slots.reads.extents.size()) continue;
    first_waiting_ = (first_waiting_ + 1) % waiting_.size();
    --waiting_count_;
  }
}

void WeightStream::complete(const storage::IoCompletion& completion) {
  Job& job = jobs_[completion.tag];
  --job.in_flight;
  if (!completion.result) {
    job.failed = true;
    Error error = completion.result.error();
    error.message = format("{}: {} (reading {})", file_.path().string(), error.message, layout_.parts[job.part].name);
    fail_step(std::move(error));
  }
  if (job.in_flight == 0 && job.extent == slots_[job.kind].reads.extents.size()) finish(job);
}

// All requests of a job have ended.
void WeightStream::finish(Job& job) {
  Slots& slots = slots_[job.kind];
  free_jobs_.push_back(static_cast<int>(&job - jobs_.data()));
  if (job.failed) {
    if (job.kind == kExpert) cache_->lost(job.slot);
    return;
  }
  bytes_ += slots.reads.read_bytes();
  if (job.kind == kExpert) {
    const PackedPart& part = layout_.parts[job.part];
    cache_->arrived(job.slot);
    if (cache_->slot_of(part.layer, part.expert) != job.slot) return;  // no longer wanted
  } else {
    slots.ready[job.slot] = 1;
  }
  place(job);
  arrivals_.push_back({job.kind, job.part});
}

void WeightStream::place(const Job& job) {
  Slots& slots = slots_[job.kind];
  const auto slot_of = [&](int node) { return slots.memory[node].data() + job.slot * slots.reads.slot_bytes[node]; };
  for (const PartReads::Move& move : slots.reads.moves)
    std::memcpy(slot_of(move.node) + move.to, slot_of(move.node) + move.from, static_cast<size_t>(move.bytes));
  const std::span<const PackedWeight> weights = layout_.weights_of(layout_.parts[job.part]);
  for (const PartReads::Place& where : slots.reads.places)
    weights[where.weight].spec.matrix->place(where.node,
                                             reinterpret_cast<bf16*>(slot_of(where.node) + where.slot_offset));
}

template <typename Condition>
void WeightStream::wait_until(Condition&& condition) {
  ask_for_all();
  while (auto completion = queue_.poll()) complete(*completion);
  if (!failed_ && !condition()) {
    const Clock::time_point start = Clock::now();
    while (!failed_ && !condition()) {
      ask_for_all();  // what has been freed, and the rest of what did not fit the queue
      ENSURE(queue_.in_flight() > 0, "what is waited for has been asked for");
      complete(queue_.wait());
    }
    wait_seconds_ += seconds_since(start);
  }
  if (!failed_) ask_for_all();  // to go on while the workers compute
}

void WeightStream::fail_step(Error error) {
  failed_ = true;
  if (!error_) error_ = std::move(error);
}

bool WeightStream::round_is_here() const {
  return std::all_of(used_.begin(), used_.end(), [&](int32_t e) {
    return e < round_.begin || e >= round_.end || cache_->slot_of(layer_, e).has_value();
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Checking: what has arrived is hashed by all workers, and what they found compared when they have met since.

void WeightStream::hash(const numa::Worker& worker) {
  for (size_t i = 0; i < arrivals_.size(); ++i) {
    Digest128 sum;
    for (const PackedWeight& weight : layout_.weights_of(layout_.parts[arrivals_[i].part])) {
      const model::PackedMatrix& matrix = *weight.spec.matrix;
      const numa::Range shard = matrix.shard(worker.node).units;
      const numa::Range share = worker.share_in_node(shard.count());
      for (int segment = 0; segment < matrix.segments(); ++segment)
        sum += units_digest(matrix, weight_name(weight.spec), worker.node, segment,
                            {shard.begin + share.begin, shard.begin + share.end});
    }
    digests_[worker.rank].sums[i] = sum;
  }
}

void WeightStream::verify() {
  for (size_t i = 0; i < arrivals_.size(); ++i) {
    const PackedPart& part = layout_.parts[arrivals_[i].part];
    Digest128 sum;
    for (const WorkerDigests& worker : digests_) sum += worker.sums[i];
    if (sum == part.digest) continue;
    drop(arrivals_[i]);
    fail_step(file_.damaged(part, sum).error());
  }
  arrivals_.clear();
}

void WeightStream::drop(const Arrival& arrival) {
  const PackedPart& part = layout_.parts[arrival.part];
  if (arrival.kind == kExpert) cache_->drop(part.layer, part.expert);
}

// ---------------------------------------------------------------------------------------------------------------------
// A step.

bool WeightStream::await_part(numa::Worker& worker, int layer, LayerPart which) noexcept {
  Slots& slots = slots_[which == LayerPart::kAttention ? kAttention : kMlp];
  if (slots.layer_parts[layer] < 0) return true;
  if (worker.rank == 0) {
    verify();
    ++slots.use;
    ENSURE(slots.turns[slots.use % static_cast<int64_t>(slots.turns.size())] == slots.layer_parts[layer],
           "parts are asked for in the order of layers");
    const size_t slot = static_cast<size_t>(slots.use) % slots.ready.size();
    if (!failed_) wait_until([&] { return slots.next_read > slots.use && slots.ready[slot] != 0; });
  }
  worker.barrier();
  if (failed_) return false;
  hash(worker);
  return true;
}

std::optional<numa::Range> WeightStream::next_experts(numa::Worker& worker, int layer, const ExpertSlots& slots,
                                                      numa::Range previous) noexcept {
  if (previous.count() > 0) {
    if (slots.first[previous.end] == slots.first[experts_]) return numa::Range{};
    worker.barrier();
  }
  if (worker.rank == 0) {
    verify();
    if (previous.count() == 0) {
      layer_ = layer;
      used_.clear();
      for (int e = 0; e < experts_; ++e)
        if (slots.first[e + 1] > slots.first[e]) used_.push_back(e);
      cache_->begin_layer(layer, used_);
    }
    round_ = cache_->next_round();
    if (!failed_) wait_until([&] { return round_is_here(); });
  }
  worker.barrier();
  if (failed_) return std::nullopt;
  hash(worker);
  return round_;
}

void WeightStream::begin_step(int rows) {
  step_started_ = Clock::now();
  layer_ = -1;
  failed_ = false;
  error_.reset();
  reads_ahead_ = int64_t{rows} * experts_per_token_ >= int64_t{kRowsToReadAhead} * experts_;
}

Result<void> WeightStream::end_step() {
  step_seconds_ += seconds_since(step_started_);
  if (!failed_) verify();
  if (!failed_) return {};
  drain();
  return std::unexpected(std::move(*error_));
}

// Everything as if no step had been: but for experts that are in memory and known to be whole.
void WeightStream::drain() {
  for (; waiting_count_ > 0; --waiting_count_) {
    Job& job = jobs_[waiting_[first_waiting_]];
    first_waiting_ = (first_waiting_ + 1) % waiting_.size();
    job.failed = true;
    job.extent = slots_[job.kind].reads.extents.size();
    if (job.in_flight == 0) finish(job);
  }
  while (queue_.in_flight() > 0) complete(queue_.wait());
  for (const Arrival& arrival : arrivals_) drop(arrival);
  arrivals_.clear();
  if (cache_) cache_->forget_spares();
  for (Slots& slots : slots_) {
    slots.use = -1;
    slots.next_read = 0;
    std::fill(slots.ready.begin(), slots.ready.end(), uint8_t{0});
  }
}

StreamStatistics WeightStream::statistics() const {
  return {.expert_hits = cache_ ? cache_->hits() : 0,
          .expert_misses = cache_ ? cache_->misses() : 0,
          .bytes = bytes_,
          .wait_seconds = wait_seconds_,
          .step_seconds = step_seconds_};
}

std::vector<const numa::NodeBuffer*> WeightStream::memory() const {
  std::vector<const numa::NodeBuffer*> buffers;
  for (const Slots& slots : slots_)
    for (const numa::NodeBuffer& buffer : slots.memory) buffers.push_back(&buffer);
  return buffers;
}

}  // namespace cpuinfer::load
