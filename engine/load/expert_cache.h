// Which experts are in memory, and which give way: bookkeeping without memory or files.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "numa/shard.h"

namespace cpuinfer::load {

/// Slots for experts of several layers. Every layer has its share of them for the experts that it used most often (the
/// counts of a layer are halved now and then); the others, spare ones, hold an expert while it is worked on. A new
/// expert takes the place of another only if it has been used more often than that: a prefill that goes through all
/// experts, again and again, changes nothing and finds the same ones in memory each time, which is the best there is
/// for a scan, and decoding keeps the most frequent.
///
/// A layer goes through rounds: some experts in ascending order that are in memory together, at most
/// most_missing_in_round() of which are read for it. While a round is worked on, the next ones are read.
/// Deterministic. Allocates in the constructor only.
class ExpertCache {
 public:
  /// layers: all of the model; those without experts have `experts` false. slots: at most all experts, spare_slots of
  /// them spare. REQUIRES: 1 <= spare_slots <= slots.
  ExpertCache(std::vector<bool> moe_layers, int experts, int slots, int spare_slots);

  struct Entry {
    int layer = -1, expert = -1;
    int slot = -1;
  };

  /// Begins a layer. used: the experts of the step, ascending.
  void begin_layer(int layer, std::span<const int32_t> used);
  /// [begin, end) of the experts of the next round; empty: no more. Those of the round before are done with.
  numa::Range next_round();
  /// The next expert to be read for this layer and the slot that is free for it; nullopt: none left, or no free slot.
  std::optional<Entry> next_read();
  /// The same for experts of another layer that is likely to use all: what is not used then goes when it begins.
  std::optional<Entry> next_read_ahead(int layer);
  /// An expert that was to be read has been, or could not be.
  void arrived(int slot);
  void lost(int slot);
  /// No round any more, and nothing is being read: spare slots are free.
  void end_layer();
  /// Frees all spare slots, those that were read ahead too: after a step that failed. REQUIRES: nothing is being read.
  void forget_spares();
  /// Where an expert is. nullopt: not in memory, or not yet.
  std::optional<int> slot_of(int layer, int expert) const;
  /// Takes an expert out, for instance a damaged one.
  void drop(int layer, int expert);

  int slots() const { return static_cast<int>(slots_.size()); }
  int most_missing_in_round() const { return most_missing_; }
  int64_t hits() const { return hits_; }
  int64_t misses() const { return misses_; }

 private:
  enum class State : uint8_t { kFree, kReading, kReady };
  struct Slot {
    Entry entry;
    State state = State::kFree;
    bool spare = false;     // goes when it has been worked on
    bool unwanted = false;  // goes when it has arrived
  };
  struct Expert {
    int slot = -1;
    uint32_t uses = 0;
    bool admitted = false;  // to stay, once it is read
  };
  Expert& expert(int layer, int e) { return experts_[static_cast<size_t>(layer) * experts_per_layer_ + e]; }
  const Expert& expert(int layer, int e) const { return experts_[static_cast<size_t>(layer) * experts_per_layer_ + e]; }
  bool admit(int layer, int e);
  std::optional<Entry> assign(int layer, int e);
  void free_slot(int slot);

  int experts_per_layer_;
  int spare_slots_, most_missing_;
  std::vector<int> quota_, kept_, age_;  // [layers] slots of its own, experts that stay, uses since the last halving
  std::vector<Expert> experts_;          // [layers][experts]
  std::vector<Slot> slots_;
  std::vector<int> free_;
  std::vector<uint8_t> in_use_;             // [experts] of this layer
  std::vector<int32_t> used_;               // of this layer, ascending
  std::vector<int32_t> missing_;            // of these, those to be read
  size_t next_missing_ = 0;                 // in missing_
  size_t round_begin_ = 0, round_end_ = 0;  // in used_
  int layer_ = -1;
  int spare_used_ = 0;
  int64_t hits_ = 0, misses_ = 0;
};

}  // namespace cpuinfer::load
