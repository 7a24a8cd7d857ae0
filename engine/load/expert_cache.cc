#include "engine/load/expert_cache.h"

#include <algorithm>

#include "base/check.h"

namespace cpuinfer::load {
namespace {

// Steps after which a layer's counts are halved: long enough to tell experts apart, short enough to follow a text.
constexpr int kHalvingSteps = 256;

}  // namespace

ExpertCache::ExpertCache(std::vector<bool> moe_layers, int experts, int slots, int spare_slots)
    : experts_per_layer_(experts),
      spare_slots_(spare_slots),
      most_missing_(std::max(spare_slots / 2, 1)),
      quota_(moe_layers.size()),
      kept_(moe_layers.size()),
      age_(moe_layers.size()),
      experts_(moe_layers.size() * static_cast<size_t>(experts)),
      slots_(static_cast<size_t>(slots)),
      in_use_(static_cast<size_t>(experts)) {
  ENSURE(spare_slots >= 1 && spare_slots <= slots, "an expert is worked on in a spare slot");
  const int layers = static_cast<int>(std::count(moe_layers.begin(), moe_layers.end(), true));
  int number = 0;
  for (size_t l = 0; l < moe_layers.size(); ++l)
    if (moe_layers[l])
      quota_[l] = std::min(static_cast<int>(numa::split(slots - spare_slots, layers, number++).count()), experts);
  for (int slot = slots - 1; slot >= 0; --slot) free_.push_back(slot);
  used_.reserve(static_cast<size_t>(experts));
  missing_.reserve(static_cast<size_t>(experts));
}

// Whether a missing expert is to stay; if so another one may have to go, which is not in use.
bool ExpertCache::admit(int layer, int e) {
  if (kept_[layer] < quota_[layer]) {
    ++kept_[layer];
    return true;
  }
  int least = -1;
  for (int other = 0; other < experts_per_layer_; ++other) {
    const Expert& candidate = expert(layer, other);
    if (!candidate.admitted || candidate.slot < 0 || in_use_[other] != 0) continue;
    if (slots_[candidate.slot].state != State::kReady) continue;
    if (least < 0 || candidate.uses < expert(layer, least).uses) least = other;
  }
  if (least < 0 || expert(layer, least).uses >= expert(layer, e).uses) return false;
  free_slot(expert(layer, least).slot);  // one goes, one comes
  return true;
}

void ExpertCache::free_slot(int number) {
  Slot& slot = slots_[number];
  Expert& holder = expert(slot.entry.layer, slot.entry.expert);
  holder.slot = -1;
  holder.admitted = false;
  if (slot.spare) --spare_used_;
  slot = {};
  free_.push_back(number);
}

void ExpertCache::begin_layer(int layer, std::span<const int32_t> used) {
  end_layer();
  layer_ = layer;
  used_.assign(used.begin(), used.end());
  std::fill(in_use_.begin(), in_use_.end(), uint8_t{0});
  if (++age_[layer] % kHalvingSteps == 0)
    for (int e = 0; e < experts_per_layer_; ++e) expert(layer, e).uses /= 2;
  for (const int32_t e : used_) {
    in_use_[e] = 1;
    ++expert(layer, e).uses;
  }
  // What was read ahead and is not used.
  for (size_t number = 0; number < slots_.size(); ++number) {
    Slot& slot = slots_[number];
    if (slot.entry.layer != layer || !slot.spare || in_use_[slot.entry.expert] != 0) continue;
    if (slot.state == State::kReady)
      free_slot(static_cast<int>(number));
    else
      slot.unwanted = true;
  }
  for (const int32_t e : used_) {
    Expert& wanted = expert(layer, e);
    if (wanted.slot >= 0) {
      slots_[wanted.slot].unwanted = false;
      // Read ahead, so a miss all the same.
      if (slots_[wanted.slot].spare) {
        ++misses_;
        if (admit(layer, e)) {
          wanted.admitted = true;
          slots_[wanted.slot].spare = false;
          --spare_used_;
        }
      } else {
        ++hits_;
      }
      continue;
    }
    ++misses_;
    wanted.admitted = admit(layer, e);
    missing_.push_back(e);
  }
}

numa::Range ExpertCache::next_round() {
  for (size_t i = round_begin_; i < round_end_; ++i) {
    const int slot = expert(layer_, used_[i]).slot;
    if (slot >= 0 && slots_[slot].spare && slots_[slot].state == State::kReady) free_slot(slot);
  }
  round_begin_ = round_end_;
  for (int missing = 0; round_end_ < used_.size(); ++round_end_) {
    const Expert& next = expert(layer_, used_[round_end_]);
    const bool absent = next.slot < 0 || slots_[next.slot].state != State::kReady || slots_[next.slot].spare;
    if (absent && missing == most_missing_) break;
    missing += absent ? 1 : 0;
  }
  if (round_begin_ == round_end_) return {};
  return {used_[round_begin_], used_[round_end_ - 1] + 1};
}

std::optional<ExpertCache::Entry> ExpertCache::assign(int layer, int e) {
  Expert& wanted = expert(layer, e);
  if (free_.empty() || (!wanted.admitted && spare_used_ >= spare_slots_)) return std::nullopt;
  const int number = free_.back();
  free_.pop_back();
  wanted.slot = number;
  slots_[number] = {{layer, e, number}, State::kReading, !wanted.admitted, false};
  if (!wanted.admitted) ++spare_used_;
  return slots_[number].entry;
}

std::optional<ExpertCache::Entry> ExpertCache::next_read() {
  if (next_missing_ == missing_.size()) return std::nullopt;
  const std::optional<Entry> entry = assign(layer_, missing_[next_missing_]);
  if (entry) ++next_missing_;
  return entry;
}

std::optional<ExpertCache::Entry> ExpertCache::next_read_ahead(int layer) {
  if (next_missing_ < missing_.size() || spare_used_ >= spare_slots_) return std::nullopt;
  for (int e = 0; e < experts_per_layer_; ++e)
    if (expert(layer, e).slot < 0) return assign(layer, e);
  return std::nullopt;
}

void ExpertCache::arrived(int number) {
  slots_[number].state = State::kReady;
  if (slots_[number].unwanted) free_slot(number);
}

void ExpertCache::lost(int number) {
  if (!slots_[number].spare) --kept_[slots_[number].entry.layer];
  free_slot(number);
}

void ExpertCache::end_layer() {
  if (layer_ < 0) return;
  // Admitted, but the step ended before they were read.
  for (; next_missing_ < missing_.size(); ++next_missing_) {
    Expert& unread = expert(layer_, missing_[next_missing_]);
    if (unread.admitted) --kept_[layer_];
    unread.admitted = false;
  }
  for (const int32_t e : used_) {
    const int slot = expert(layer_, e).slot;
    if (slot >= 0 && slots_[slot].spare && slots_[slot].state == State::kReady) free_slot(slot);
  }
  used_.clear();
  missing_.clear();
  next_missing_ = round_begin_ = round_end_ = 0;
  layer_ = -1;
}

void ExpertCache::forget_spares() {
  end_layer();
  for (int number = 0; number < slots(); ++number)
    if (slots_[number].spare) free_slot(number);
}

std::optional<int> ExpertCache::slot_of(int layer, int e) const {
  const int slot = expert(layer, e).slot;
  if (slot < 0 || slots_[slot].state != State::kReady) return std::nullopt;
  return slot;
}

void ExpertCache::drop(int layer, int e) {
  if (const int slot = expert(layer, e).slot; slot >= 0) lost(slot);
}

}  // namespace cpuinfer::load
