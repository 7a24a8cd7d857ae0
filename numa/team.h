// The threads that compute. Hides OpenMP (team.cc has the only `#pragma omp` of the project) and pinning.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "base/result.h"
#include "numa/barrier.h"
#include "numa/shard.h"
#include "numa/team_layout.h"
#include "numa/topology.h"
#include "numa/work_ranges.h"

namespace cpuinfer::numa {

/// What one thread inside Team::run knows about itself. Ranks are grouped by node: node 0 has ranks 0, 1, ..., then
/// node 1, and so on. Cheap to copy; valid during run() only.
struct Worker {
  int rank = 0, count = 1;                  ///< in the whole team
  int node = 0, nodes = 1;                  ///< index of its node, 0 .. nodes-1
  int rank_in_node = 0, count_in_node = 1;  ///< among the workers of its node

  /// Returns when all workers of the team have called it: a phase boundary. What was written before is visible after.
  /// Every worker must make the same number of calls.
  void barrier() noexcept { node_barrier->wait(rank_in_node, team_barrier, node); }
  /// The same for the workers of this worker's node only; nothing crosses to another node.
  void barrier_in_node() noexcept { node_barrier->wait(rank_in_node); }
  /// This worker's part of `items`, by the one rule of shard.h.
  Range share(int64_t items) const { return split(items, count, rank); }
  /// Its part when the workers of its node do all `items` among themselves.
  Range share_in_node(int64_t items) const { return split(items, count_in_node, rank_in_node); }

  /// Begins a phase whose items move between the workers of a node (WorkRanges): this worker's part at first.
  void deal(Range items) noexcept { ranges->deal(rank, items); }
  /// The next items to do: between `least` and `most` of them, fewer at the very end; empty when none are left on the
  /// node. Between two phases with deal() there is a barrier.
  Range take(int64_t least, int64_t most) noexcept {
    return ranges->take(rank, rank - rank_in_node, count_in_node, least, most);
  }

  Barrier* team_barrier = nullptr;  ///< of the nodes
  Barrier* node_barrier = nullptr;  ///< of the workers of this one
  WorkRanges* ranges = nullptr;
};

/// Where a worker was to run, and where it did.
struct WorkerPlacement {
  int node = 0;           ///< index of its node
  std::vector<int> cpus;  ///< where it was to run; empty: it is not pinned
  int last_cpu = -1;      ///< where it was at the end of the last run(); -1: before the first
};

/// Address space that one more thread takes: its stack, of which it fills little, and the guard.
int64_t thread_stack_bytes();

/// A fixed set of workers, pinned to physical cores and grouped by node. Create once, run() many times. run() is to be
/// called by one thread at a time and not from inside run(); the calling thread is worker 0.
class Team {
 public:
  /// The workers of plan_team(), pinned if the topology says so (Topology::pins_threads).
  /// Errors: kUsage (of plan_team), kDoesNotFit (their stacks, by `ulimit -v` and the like), kRuntime (OpenMP gives
  /// fewer threads, the system refuses or ignores the pinning).
  static Result<std::unique_ptr<Team>> create(const Topology& topology, const TeamOptions& options = {});

  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  ~Team() = default;

  int workers() const { return static_cast<int>(places_.size()); }
  int nodes() const { return nodes_; }
  /// [workers] the node of each.
  std::vector<int> worker_nodes() const { return layout_.worker_nodes(); }
  /// Workers that are pinned: all, or 0 on a synthetic topology and if nothing was to be pinned.
  int pinned() const { return pinned_; }
  /// By rank. Not to be called during run().
  std::vector<WorkerPlacement> where() const;

  /// Calls work(Worker&) once in every worker at the same time and returns when all have returned. During the call the
  /// floating-point environment of every worker is round-to-nearest, no traps, subnormals are zero (FTZ and DAZ);
  /// that and the affinity of the calling thread are as before afterwards. `work` must not throw (that terminates).
  /// Allocates nothing.
  template <typename F>
  void run(F&& work) {
    using Callable = std::remove_reference_t<F>;
    run_erased([](const void* callable,
                  Worker& worker) noexcept { (*static_cast<Callable*>(const_cast<void*>(callable)))(worker); },
               std::addressof(work));
  }

 private:
  /// Where one worker is. CPU masks are bit sets as the system wants them; Linux stops at 8192 CPUs on x86-64.
  using CpuMask = std::array<unsigned long, 8192 / (8 * sizeof(unsigned long))>;
  struct Place {
    Worker worker;
    CpuMask cpus{};     ///< where it may run; empty: anywhere
    int last_cpu = -1;  ///< where it was at the end of the last run
  };
  using Work = void (*)(const void* callable, Worker& worker) noexcept;

  Team(std::vector<Place> places, int nodes, bool oversubscribed);
  void run_erased(Work work, const void* callable);
  void run_as(int rank, Work work, const void* callable);

  std::vector<Place> places_;
  TeamLayout layout_;
  int nodes_ = 1;
  int pinned_ = 0;
  std::unique_ptr<Barrier> barrier_;  // a rank per node
  std::vector<std::unique_ptr<Barrier>> node_barriers_;
  std::unique_ptr<WorkRanges> ranges_;
};

}  // namespace cpuinfer::numa
