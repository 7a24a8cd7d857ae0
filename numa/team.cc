#include "numa/team.h"

#include <sched.h>
#include <xmmintrin.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/format.h"
#include "base/log.h"

#ifdef CPUINFER_TEAM_THREADS
#include <thread>
#else
#include <omp.h>
#endif

namespace cpuinfer::numa {
namespace {

constexpr int kMaxWorkers = 4096;
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

/// How many of `threads` each of `nodes` nodes gets. Machine nodes: one physical core after the other, node by node in
/// turn, then siblings, then without limit. Simulated nodes: evenly.
std::vector<int> deal(const Topology& topology, int threads, int nodes) {
  std::vector<int> counts(static_cast<size_t>(nodes), 0);
  if (static_cast<size_t>(nodes) > topology.nodes().size()) {
    for (int n = 0; n < nodes; ++n) counts[static_cast<size_t>(n)] = static_cast<int>(split(threads, nodes, n).count());
    return counts;
  }
  int left = threads;
  const auto fill = [&](auto limit_of) {
    for (bool dealt = true; dealt && left > 0;) {
      dealt = false;
      for (size_t n = 0; n < counts.size() && left > 0; ++n) {
        if (counts[n] >= limit_of(topology.nodes()[n])) continue;
        ++counts[n];
        --left;
        dealt = true;
      }
    }
  };
  fill([](const Node& node) { return node.cores; });
  fill([](const Node& node) { return static_cast<int>(node.cpus.size()); });
  fill([](const Node&) { return kMaxWorkers; });
  return counts;
}

}  // namespace

Result<std::unique_ptr<Team>> Team::create(const Topology& topology, int threads, int nodes) {
  const int machine_nodes = static_cast<int>(topology.nodes().size());
  if (threads < 0 || threads > kMaxWorkers)
    return fail(ErrorCode::kUsage, format("{} threads: expected 1 to {}, or 0 for one per physical core ({} here)",
                                          threads, kMaxWorkers, topology.cores()));
  if (nodes < 0 || nodes > kMaxWorkers)
    return fail(ErrorCode::kUsage, format("{} nodes: expected 1 to {}, or 0 for all of the machine ({} here)", nodes,
                                          kMaxWorkers, machine_nodes));
  if (nodes == 0) nodes = threads == 0 ? machine_nodes : std::min(machine_nodes, threads);
  if (threads == 0) {
    for (int n = 0; n < std::min(nodes, machine_nodes); ++n) threads += topology.nodes()[static_cast<size_t>(n)].cores;
    threads = std::max(threads, nodes);
  }
  if (threads < nodes)
    return fail(ErrorCode::kUsage, format("{} threads cannot serve {} nodes: every node needs a thread; use at least "
                                          "{} threads or at most {} nodes",
                                          threads, nodes, nodes, threads));

  // Workers of one home node take its CPUs in order. When there are more workers than CPUs they share them all and the
  // scheduler moves them: two pinned to one CPU would wait for each other while another CPU idles.
  const std::vector<int> counts = deal(topology, threads, nodes);
  std::vector<int> wanted(static_cast<size_t>(machine_nodes), 0);
  for (int n = 0; n < nodes; ++n) wanted[static_cast<size_t>(n % machine_nodes)] += counts[static_cast<size_t>(n)];
  std::vector<int> taken(static_cast<size_t>(machine_nodes), 0);
  std::vector<Place> places;
  bool oversubscribed = false;
  for (int n = 0; n < nodes; ++n) {
    const Node& home = topology.home(n);
    const size_t home_index = static_cast<size_t>(n % machine_nodes);
    const bool shared = wanted[home_index] > static_cast<int>(home.cpus.size());
    oversubscribed |= shared;
    for (int r = 0; r < counts[static_cast<size_t>(n)]; ++r) {
      Place place;
      place.worker = {.rank = static_cast<int>(places.size()),
                      .count = threads,
                      .node = n,
                      .nodes = nodes,
                      .rank_in_node = r,
                      .count_in_node = counts[static_cast<size_t>(n)]};
      if (topology.is_this_machine()) {
        if (shared) {
          for (int cpu : home.cpus) add_cpu(place.cpus, cpu);
        } else {
          add_cpu(place.cpus, home.cpus[static_cast<size_t>(taken[home_index]++)]);
        }
      }
      places.push_back(place);
    }
  }
  if (!topology.is_this_machine()) oversubscribed = true;  // nothing is known about the real CPUs

  std::unique_ptr<Team> team(new Team(std::move(places), nodes, oversubscribed));
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
    log_warn("{} of {} threads could not be pinned to their CPUs ({}); speed will vary", refused.load(), threads,
             refusal != 0 ? std::strerror(refusal) : "the system ignored the request");
  return team;
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

std::vector<int> Team::worker_nodes() const {
  std::vector<int> nodes;
  for (const Place& place : places_) nodes.push_back(place.worker.node);
  return nodes;
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
  if (restore) set_affinity(before);
}

}  // namespace cpuinfer::numa
