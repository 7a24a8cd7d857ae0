#include "numa/barrier.h"

#include <immintrin.h>
#include <sched.h>

#include "base/check.h"

namespace cpuinfer::numa {
namespace {

constexpr int kFanIn = 4;
/// Yields between spinning and sleeping. Long enough (50-200 us on an idle machine) that workers of one step rarely
/// sleep, since waking costs tens of microseconds; short enough that an idle team leaves the CPUs to others.
constexpr int kYields = 100;

/// Epochs wrap around; waiters are never more than one apart, so the sign of the difference decides.
bool reached(uint32_t found, uint32_t wanted) { return static_cast<int32_t>(found - wanted) >= 0; }

}  // namespace

Barrier::Barrier(int count, int spins)
    : count_(count), spins_(spins), places_(std::make_unique<Place[]>(static_cast<size_t>(count))) {
  ENSURE(count >= 1, "a barrier has at least one worker");
}

void Barrier::await(Flag& flag, uint32_t epoch) noexcept {
  for (int i = 0; i < spins_; ++i) {
    if (reached(flag.epoch.load(std::memory_order_acquire), epoch)) return;
    _mm_pause();
  }
  for (int i = 0; i < kYields; ++i) {
    if (reached(flag.epoch.load(std::memory_order_acquire), epoch)) return;
    sched_yield();
  }
  for (;;) {
    const uint32_t found = flag.epoch.load(std::memory_order_acquire);
    if (reached(found, epoch)) return;
    flag.epoch.wait(found, std::memory_order_acquire);
  }
}

void Barrier::raise(Flag& flag, uint32_t epoch) noexcept {
  // Sequentially consistent, because the notifier skips the system call when it sees no sleeper: the store must not
  // pass that look, or a waiter that went to sleep in between would never wake.
  flag.epoch.store(epoch, std::memory_order_seq_cst);
  flag.epoch.notify_one();
}

void Barrier::wait(int rank, Barrier* above, int rank_above) noexcept {
  Place& self = places_[static_cast<size_t>(rank)];
  const uint32_t epoch = ++self.epoch;
  const int64_t first_child = int64_t{rank} * kFanIn + 1;
  const int64_t end_child = first_child + kFanIn < count_ ? first_child + kFanIn : count_;
  for (int64_t child = first_child; child < end_child; ++child) await(places_[child].arrived, epoch);
  if (rank != 0) {
    raise(self.arrived, epoch);
    await(self.released, epoch);
  } else if (above != nullptr) {
    above->wait(rank_above);
  }
  for (int64_t child = first_child; child < end_child; ++child) raise(places_[child].released, epoch);
}

}  // namespace cpuinfer::numa
