#include "numa/team.h"

#include <pthread.h>
#include <sched.h>
#include <xmmintrin.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/format.h"
#include "base/types.h"
#include "numa/memory_limit.h"

#ifdef CPUINFER_TEAM_THREADS
#include <thread>
#else
#include <omp.h>
#endif

namespace cpuinfer::numa {
namespace {

// A pause is 40-140 cycles: 500 of them are 10-30 us, about the imbalance between workers of one phase.
constexpr int kSpins = 500;
constexpr int kSpinsOversubscribed = 10;

// Round to nearest, all exceptions masked, subnormal results and operands are zero (FTZ and DAZ).
constexpr unsigned kMxcsr = 0x1f80u | 0x8000u | 0x0040u;

/// Calls body(rank) in `count` threads at once, in the calling thread for rank 0. False if the system gave fewer
/// threads; nothing has been called then. body must not throw.
template <typename Body>
bool in_parallel(int count, Body&& body) {
  if (count == 1) {  // libgomp would allocate for every region of one thread
    body(0);
    return true;
  }
#ifdef CPUINFER_TEAM_THREADS
  // ThreadSanitizer does not understand libgomp's barriers; plain threads it does.
  std::vector<std::thread> threads;
  for (int rank = 1; rank < count; ++rank) threads.emplace_back([&body, rank] { body(rank); });
  body(0);
  for (std::thread& thread : threads) thread.join();
  return true;
#else
  bool complete = false;
  omp_set_dynamic(0);  // the count is a promise to the barrier, not a hint
#pragma omp parallel num_threads(count)
  {
    // The same value in every thread of the region, so either all call or none does.
    const bool all_here = omp_get_num_threads() == count;
    if (omp_get_thread_num() == 0) complete = all_here;
    if (all_here) body(omp_get_thread_num());
  }
  return complete;
#endif
}

template <typename Mask>
void add_cpu(Mask& mask, int cpu) {
  constexpr int kBits = 8 * sizeof(mask[0]);
  if (cpu >= 0 && static_cast<size_t>(cpu) < mask.size() * kBits)
    mask[static_cast<size_t>(cpu / kBits)] |= 1ul << (cpu % kBits);
}

template <typename Mask>
bool has_cpu(const Mask& mask, int cpu) {
  constexpr int kBits = 8 * sizeof(mask[0]);
  return cpu >= 0 && static_cast<size_t>(cpu) < mask.size() * kBits &&
         (mask[static_cast<size_t>(cpu / kBits)] >> (cpu % kBits) & 1u) != 0;
}

template <typename Mask>
bool is_empty(const Mask& mask) {
  return std::all_of(mask.begin(), mask.end(), [](unsigned long word) { return word == 0; });
}

template <typename Mask>
bool set_affinity(const Mask& mask) {
  return sched_setaffinity(0, sizeof(mask), reinterpret_cast<const cpu_set_t*>(mask.data())) == 0;
}

template <typename Mask>
bool get_affinity(Mask& mask) {
  return sched_getaffinity(0, sizeof(mask), reinterpret_cast<cpu_set_t*>(mask.data())) == 0;
}

}  // namespace

int64_t thread_stack_bytes() {
  pthread_attr_t attributes;
  if (pthread_getattr_default_np(&attributes) != 0) return 8_MiB;
  size_t stack = 0, guard = 0;
  pthread_attr_getstacksize(&attributes, &stack);
  pthread_attr_getguardsize(&attributes, &guard);
  pthread_attr_destroy(&attributes);
  return static_cast<int64_t>(stack + guard);
}

Result<std::unique_ptr<Team>> Team::create(const Topology& topology, const TeamOptions& options) {
  TRY_ASSIGN(TeamLayout layout, plan_team(topology, options));
  const int threads = static_cast<int>(layout.workers.size());
  // OpenMP ends the process when it cannot make a thread.
  const int64_t stacks = (threads - 1) * thread_stack_bytes();
  if (const MemoryLimit limit = available_memory(stacks); limit.bytes == 0 && available_memory().bytes > 0)
    return fail(ErrorCode::kDoesNotFit,
                format("there is no room for the stacks of {} threads ({}); use fewer threads, a smaller `ulimit -s`, "
                       "or raise the limit",
                       threads, limit.reason));
  const bool pin = topology.pins_threads();
  std::vector<Place> places;
  for (const WorkerPlace& planned : layout.workers) {
    Place place;
    place.worker = {.rank = static_cast<int>(places.size()),
                    .count = threads,
                    .node = planned.node,
                    .nodes = layout.nodes,
                    .rank_in_node = planned.rank_in_node,
                    .count_in_node = planned.count_in_node};
    if (pin)
      for (int cpu : planned.cpus) add_cpu(place.cpus, cpu);
    places.push_back(place);
  }
  // Of a machine that is not there nothing is known about the real CPUs; threads that are not pinned may meet on one.
  const bool oversubscribed = layout.oversubscribed || !pin;

  std::unique_ptr<Team> team(new Team(std::move(places), layout.nodes, oversubscribed));
  team->layout_ = std::move(layout);
  std::atomic<int> pinned{0};
  std::atomic<int> refused{0};
  std::atomic<int> refusal{0};
  const bool complete = in_parallel(threads, [&](int rank) {
    const CpuMask& cpus = team->places_[static_cast<size_t>(rank)].cpus;
    if (is_empty(cpus)) return;
    CpuMask before{};
    const bool restore = rank == 0 && get_affinity(before);
    if (!set_affinity(cpus)) {
      refusal = errno;
      ++refused;
    } else if (has_cpu(cpus, sched_getcpu())) {
      ++pinned;
    } else {
      ++refused;  // accepted but not done: some sandboxes do that
    }
    if (restore) set_affinity(before);
  });
  if (!complete)
    return fail(ErrorCode::kRuntime,
                format("OpenMP gave fewer than the {} threads asked for; look at OMP_THREAD_LIMIT and `ulimit -u`, or "
                       "ask for fewer threads",
                       threads));
  team->pinned_ = pinned;
  if (refused > 0)
    return fail(
        ErrorCode::kRuntime,
        format("{} of {} threads could not be pinned to their CPUs ({}); allow sched_setaffinity in the sandbox "
               "or container, or run with --no-pin, at varying speed",
               refused.load(), threads, refusal != 0 ? std::strerror(refusal) : "the system ignored the request"));
  return team;
}

std::vector<WorkerPlacement> Team::where() const {
  std::vector<WorkerPlacement> placements;
  for (size_t rank = 0; rank < places_.size(); ++rank)
    // Of workers that are not pinned no CPU is wanted.
    placements.push_back({layout_.workers[rank].node,
                          is_empty(places_[rank].cpus) ? std::vector<int>{} : layout_.workers[rank].cpus,
                          places_[rank].last_cpu});
  return placements;
}

Team::Team(std::vector<Place> places, int nodes, bool oversubscribed)
    : places_(std::move(places)),
      nodes_(nodes),
      barrier_(std::make_unique<Barrier>(nodes, oversubscribed ? kSpinsOversubscribed : kSpins)),
      ranges_(std::make_unique<WorkRanges>(static_cast<int>(places_.size()))) {
  for (Place& place : places_) {
    if (place.worker.rank_in_node == 0)
      node_barriers_.push_back(
          std::make_unique<Barrier>(place.worker.count_in_node, oversubscribed ? kSpinsOversubscribed : kSpins));
    place.worker.team_barrier = barrier_.get();
    place.worker.node_barrier = node_barriers_.back().get();
    place.worker.ranges = ranges_.get();
  }
}

void Team::run_erased(Work work, const void* callable) {
  const bool complete = in_parallel(workers(), [&](int rank) { run_as(rank, work, callable); });
  ENSURE(complete, "run() has the threads that create() had: it was called inside another parallel region");
}

void Team::run_as(int rank, Work work, const void* callable) {
  Place& place = places_[static_cast<size_t>(rank)];
  // The system call is cheap when nothing changes (0.3 us), and OpenMP may hand a rank to another thread at any run.
  // Only the calling thread gets its old affinity back: it goes on to start other threads, which inherit it.
  CpuMask before{};
  const bool pin = !is_empty(place.cpus);
  const bool restore = pin && rank == 0 && get_affinity(before);
  if (pin) set_affinity(place.cpus);
  const unsigned mxcsr = _mm_getcsr();
  _mm_setcsr(kMxcsr);

  Worker worker = place.worker;
  work(callable, worker);

  _mm_setcsr(mxcsr);
  place.last_cpu = sched_getcpu();  // before the caller's affinity comes back
  if (restore) set_affinity(before);
}

}  // namespace cpuinfer::numa
