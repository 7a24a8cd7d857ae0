#include "engine/load/expert_cache.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

using namespace cpuinfer;
using namespace cpuinfer::load;

namespace {

// Goes through a layer as a reader would, one read at a time, in the order in which they were asked for. Checks that
// what a round needs is there, that no slot has two experts, and returns how many were read.
int go_through(ExpertCache& cache, int layer, const std::vector<int32_t>& used, std::vector<int>& pending,
               int read_ahead_layer = -1) {
  int reads = 0;
  cache.begin_layer(layer, used);
  size_t done = 0;
  for (numa::Range round = cache.next_round(); round.count() > 0; round = cache.next_round()) {
    const auto here = [&] {
      return std::all_of(used.begin(), used.end(), [&](int32_t e) {
        return e < round.begin || e >= round.end || cache.slot_of(layer, e).has_value();
      });
    };
    const auto ask = [&] {
      while (const auto entry = cache.next_read()) pending.push_back(entry->slot);
      if (read_ahead_layer >= 0)
        while (const auto entry = cache.next_read_ahead(read_ahead_layer)) pending.push_back(entry->slot);
    };
    ask();
    while (!here()) {
      REQUIRE(!pending.empty());
      cache.arrived(pending.front());
      pending.erase(pending.begin());
      ++reads;
      ask();
    }
    std::set<int> slots;
    for (const int32_t e : used) {
      if (e < round.begin || e >= round.end) continue;
      CHECK(slots.insert(*cache.slot_of(layer, e)).second);
      ++done;
    }
  }
  CHECK(done == used.size());
  return reads;
}

std::vector<int32_t> everyone(int experts) {
  std::vector<int32_t> all(static_cast<size_t>(experts));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

}  // namespace

TEST_CASE("a scan over more experts than slots finds the same ones in memory every time") {
  ExpertCache cache({true, false, true}, 16, 14, 2);  // six of each layer stay
  std::vector<int> pending;
  for (int step = 0; step < 5; ++step) {
    for (const int layer : {0, 2}) {
      const int64_t hits = cache.hits();
      go_through(cache, layer, everyone(16), pending);
      CHECK(cache.hits() - hits == (step == 0 ? 0 : 6));
    }
  }
  CHECK(cache.misses() == 2 * (5 * 16 - 4 * 6));
}

TEST_CASE("what is used more often stays") {
  ExpertCache cache({true}, 32, 10, 2);
  std::vector<int> pending;
  std::mt19937 random(1);
  int64_t hits_before = 0;
  for (int step = 0; step < 2000; ++step) {
    // Half of the choices are among four experts.
    std::set<int32_t> used;
    while (used.size() < 4) used.insert(static_cast<int32_t>(random() % 2 == 0 ? 20 + random() % 4 : random() % 32));
    if (step == 1000) hits_before = cache.hits();
    go_through(cache, 0, {used.begin(), used.end()}, pending);
  }
  for (int e = 20; e < 24; ++e) CHECK(cache.slot_of(0, e).has_value());
  CHECK(cache.hits() - hits_before > 2000);
}

TEST_CASE("every number of slots works, with rounds of one expert and with all in one") {
  std::mt19937 random(2);
  for (int spare = 1; spare <= 12; ++spare) {
    for (int kept = 0; kept <= 24; kept += 3) {
      CAPTURE(spare);
      CAPTURE(kept);
      ExpertCache cache({true, true}, 12, spare + kept, spare);
      std::vector<int> pending;
      for (int step = 0; step < 60; ++step) {
        std::set<int32_t> used;
        const size_t count = 1 + random() % 12;
        while (used.size() < count) used.insert(static_cast<int32_t>(random() % 12));
        go_through(cache, step % 2, {used.begin(), used.end()}, pending, step % 4 == 0 ? (step + 1) % 2 : -1);
        if (step % 7 == 6) {
          // A step that failed: what was being read is lost.
          for (const int slot : pending) cache.lost(slot);
          pending.clear();
          cache.forget_spares();
        }
        if (step % 5 == 4)
          if (const auto slot = cache.slot_of(step % 2, 3)) cache.drop(step % 2, 3);
      }
    }
  }
}

TEST_CASE("what was read ahead and is not used gives its slot back, also while it is on its way") {
  ExpertCache cache({true, true}, 8, 4, 4);
  std::vector<int> pending;
  go_through(cache, 0, {1, 2}, pending, 1);
  // Experts 0 to 3 of layer 1 were asked for, as far as there were slots.
  CHECK(!pending.empty());
  cache.arrived(pending[0]);
  pending.erase(pending.begin());
  CHECK(cache.slot_of(1, 0).has_value());
  go_through(cache, 1, {6, 7}, pending);
  CHECK(!cache.slot_of(1, 0).has_value());
  for (const int slot : pending) cache.arrived(slot);
  pending.clear();
  CHECK(go_through(cache, 0, {0, 1, 2, 3, 4, 5, 6, 7}, pending) == 8);
}
