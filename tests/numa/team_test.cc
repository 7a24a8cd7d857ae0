#include "numa/team.h"

#include <doctest/doctest.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xmmintrin.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <limits>
#include <thread>

#include "tests/numa/topologies.h"

using namespace cpuinfer;
using numa::machine;
using numa::Range;
using numa::synthetic;
using numa::Team;
using numa::Topology;
using numa::Worker;

namespace {
// What the next calls of sched_setaffinity do. The library's calls come here: it is linked into this program.
enum class Pinning { kReal, kRefuse, kIgnore };
std::atomic<Pinning> g_pinning{Pinning::kReal};
}  // namespace

extern "C" int sched_setaffinity(pid_t pid, size_t size, const cpu_set_t* mask) noexcept {
  switch (g_pinning.load()) {
    case Pinning::kReal: return syscall(SYS_sched_setaffinity, pid, size, mask) < 0 ? -1 : 0;
    case Pinning::kRefuse: errno = EPERM; return -1;
    case Pinning::kIgnore: return 0;
  }
  return 0;
}

namespace {

std::unique_ptr<Team> make_team(const Topology& topology, int threads, int nodes) {
  auto team = Team::create(topology, {.threads = threads, .nodes = nodes});
  REQUIRE(team.has_value());
  return std::move(team).value();
}

/// The workers of each node, in the order of ranks, after checking that ranks are consistent.
std::vector<int> workers_by_node(Team& team) {
  std::vector<Worker> seen(static_cast<size_t>(team.workers()));
  team.run([&](Worker& worker) { seen[static_cast<size_t>(worker.rank)] = worker; });
  std::vector<int> counts(static_cast<size_t>(team.nodes()), 0);
  int last_node = 0;
  for (int rank = 0; rank < team.workers(); ++rank) {
    const Worker& worker = seen[static_cast<size_t>(rank)];
    CHECK(worker.rank == rank);
    CHECK(worker.count == team.workers());
    CHECK(worker.nodes == team.nodes());
    CHECK(worker.node >= last_node);
    CHECK(worker.rank_in_node == counts[static_cast<size_t>(worker.node)]++);
    last_node = worker.node;
  }
  for (const Worker& worker : seen) CHECK(worker.count_in_node == counts[static_cast<size_t>(worker.node)]);
  return counts;
}

}  // namespace

TEST_CASE("by default one worker per physical core, each pinned to its own") {
  const Topology topology = machine();
  const auto team = make_team(topology, 0, 0);
  CHECK(team->workers() == topology.cores());
  CHECK(team->nodes() == static_cast<int>(topology.nodes().size()));
  CHECK(team->pinned() == team->workers());
  std::vector<int> cpus(static_cast<size_t>(team->workers()), -1);
  team->run([&](Worker& worker) { cpus[static_cast<size_t>(worker.rank)] = sched_getcpu(); });
  size_t next = 0;
  for (const numa::Node& node : topology.nodes())
    for (int core = 0; core < node.cores; ++core) CHECK(cpus[next++] == node.cpus[static_cast<size_t>(core)]);
}

TEST_CASE("threads are dealt to nodes: cores first, node by node") {
  const Topology two = synthetic("numa:2 core:4 pu:2");
  CHECK(workers_by_node(*make_team(two, 0, 0)) == std::vector<int>{4, 4});
  CHECK(workers_by_node(*make_team(two, 0, 1)) == std::vector<int>{4});
  CHECK(workers_by_node(*make_team(two, 3, 0)) == std::vector<int>{2, 1});
  CHECK(workers_by_node(*make_team(two, 1, 0)) == std::vector<int>{1});
  CHECK(workers_by_node(*make_team(two, 11, 2)) == std::vector<int>{6, 5});
  CHECK(workers_by_node(*make_team(two, 19, 2)) == std::vector<int>{10, 9});
}

TEST_CASE("a team may have more nodes than the machine, for tests") {
  const Topology topology = machine();
  if (topology.nodes().size() < 5)
    CHECK(workers_by_node(*make_team(topology, 7, 5)) == std::vector<int>{2, 2, 1, 1, 1});
  const Topology one = synthetic("numa:1 core:2 pu:1");
  CHECK(workers_by_node(*make_team(one, 0, 3)) == std::vector<int>{1, 1, 1});
  CHECK(workers_by_node(*make_team(one, 6, 3)) == std::vector<int>{2, 2, 2});
}

TEST_CASE("shares cover all items once; phases see each other's writes") {
  const Topology topology = machine();
  for (int threads : {1, 2, 3, 8, 17}) {
    const auto team = make_team(topology, threads, 0);
    std::vector<int> items(1000, 0);
    std::vector<int> wrong(static_cast<size_t>(threads), 0);
    for (int run = 0; run < 20; ++run) {
      team->run([&](Worker& worker) {
        for (int phase = 1; phase <= 50; ++phase) {
          const Range mine = worker.share(std::ssize(items));
          for (int64_t i = mine.begin; i < mine.end; ++i) ++items[static_cast<size_t>(i)];
          worker.barrier();
          for (int item : items) wrong[static_cast<size_t>(worker.rank)] += item != run * 50 + phase;
          worker.barrier();
        }
      });
    }
    for (int count : wrong) CHECK(count == 0);
  }
}

TEST_CASE("inside run() subnormals are zero and rounding is to nearest; afterwards all is as before") {
  const Topology topology = machine();
  const auto team = make_team(topology, 3, 0);
  const unsigned before = _mm_getcsr();
  _mm_setcsr((before & ~0xe040u) | 0x4000u);  // rounds up, keeps subnormals
  const unsigned caller = _mm_getcsr() & ~0x3fu;
  std::vector<unsigned> inside(3, 0);
  std::vector<float> halves(3, -1.0f);
  team->run([&](Worker& worker) {
    const auto rank = static_cast<size_t>(worker.rank);
    inside[rank] = _mm_getcsr() & ~0x3fu;
    volatile float smallest = std::numeric_limits<float>::min();
    halves[rank] = smallest * 0.5f;
  });
  const unsigned after = _mm_getcsr() & ~0x3fu;
  _mm_setcsr(before);
  CHECK(after == caller);
  for (unsigned mxcsr : inside) CHECK(mxcsr == (0x1f80u | 0x8040u));
  for (float half : halves) CHECK(half == 0.0f);
}

TEST_CASE("the calling thread keeps its affinity") {
  const Topology topology = machine();
  cpu_set_t before, after;
  REQUIRE(sched_getaffinity(0, sizeof(before), &before) == 0);
  const auto team = make_team(topology, 0, 0);
  team->run([](Worker&) {});
  REQUIRE(sched_getaffinity(0, sizeof(after), &after) == 0);
  CHECK(CPU_EQUAL(&before, &after));
}

TEST_CASE("several teams, and a team used by another thread than the one that made it") {
  const Topology topology = machine();
  const auto small = make_team(topology, 2, 0);
  const auto large = make_team(topology, 5, 0);
  std::atomic<int> calls{0};
  for (int i = 0; i < 100; ++i) {
    small->run([&](Worker& worker) { worker.barrier(), ++calls; });
    large->run([&](Worker& worker) { worker.barrier(), ++calls; });
  }
  std::thread([&] { large->run([&](Worker& worker) { worker.barrier(), ++calls; }); }).join();
  CHECK(calls == 100 * 7 + 5);
}

TEST_CASE("a refused or ignored pinning is an error that names the way out") {
  const Topology topology = machine();
  g_pinning = Pinning::kRefuse;
  const auto refused = Team::create(topology, {.threads = 2, .nodes = 1});
  const auto unpinned = Team::create(topology.unpinned(), {.threads = 2, .nodes = 1});
  g_pinning = Pinning::kReal;
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().code == ErrorCode::kRuntime);
  CHECK(refused.error().message ==
        "2 of 2 threads could not be pinned to their CPUs (Operation not permitted); allow sched_setaffinity in the "
        "sandbox or container, or run with --no-pin, at varying speed");
  REQUIRE(unpinned.has_value());
  CHECK((*unpinned)->pinned() == 0);
  int calls = 0;
  (*unpinned)->run([&](Worker& worker) {
    worker.barrier();
    if (worker.rank == 0) ++calls;
  });
  CHECK(calls == 1);

  if (topology.cores() < 2) {
    MESSAGE("skipped: one core only, so a thread is always where it should be");
    return;
  }
  // Worker 0 belongs to the first CPU. It stands on another one and the system only says that it moved it.
  cpu_set_t before, other;
  REQUIRE(sched_getaffinity(0, sizeof(before), &before) == 0);
  CPU_ZERO(&other);
  CPU_SET(topology.nodes().back().cpus[static_cast<size_t>(topology.nodes().back().cores - 1)], &other);
  REQUIRE(sched_setaffinity(0, sizeof(other), &other) == 0);
  g_pinning = Pinning::kIgnore;
  const auto ignored = Team::create(topology, {.threads = 1, .nodes = 1});
  g_pinning = Pinning::kReal;
  sched_setaffinity(0, sizeof(before), &before);
  REQUIRE_FALSE(ignored.has_value());
  CHECK(ignored.error().message.starts_with(
      "1 of 1 threads could not be pinned to their CPUs (the system ignored the request); allow"));
}

TEST_CASE("an unpinned team leaves affinities alone") {
  const Topology topology = machine();
  const auto team = Team::create(topology.unpinned());
  REQUIRE(team.has_value());
  cpu_set_t before;
  REQUIRE(sched_getaffinity(0, sizeof(before), &before) == 0);
  std::atomic<int> changed{0};
  (*team)->run([&](Worker&) {
    cpu_set_t inside;
    changed += sched_getaffinity(0, sizeof(inside), &inside) != 0 || !CPU_EQUAL(&before, &inside);
  });
  CHECK(changed == 0);
}

TEST_CASE("where() says where workers were to run and where they did") {
  const Topology topology = machine();
  const auto team = make_team(topology, 0, 0);
  for (const numa::WorkerPlacement& worker : team->where()) CHECK(worker.last_cpu == -1);
  team->run([](Worker&) {});
  const std::vector<numa::WorkerPlacement> placements = team->where();
  REQUIRE(static_cast<int>(placements.size()) == team->workers());
  size_t rank = 0;
  for (size_t n = 0; n < topology.nodes().size(); ++n) {
    for (int core = 0; core < topology.nodes()[n].cores; ++core, ++rank) {
      const int cpu = topology.nodes()[n].cpus[static_cast<size_t>(core)];
      CHECK(placements[rank].node == static_cast<int>(n));
      CHECK(placements[rank].cpus == std::vector<int>{cpu});
      CHECK(placements[rank].last_cpu == cpu);
    }
  }
  const auto elsewhere = make_team(synthetic("numa:2 core:1 pu:1"), 0, 0);
  elsewhere->run([](Worker&) {});
  CHECK(elsewhere->where()[1].node == 1);
  CHECK(elsewhere->where()[1].last_cpu >= 0);
}

TEST_CASE("numbers that make no sense are the layout's usage errors") {
  const auto team = Team::create(synthetic("numa:2 core:4 pu:1"), {.threads = 2, .nodes = 3});
  REQUIRE_FALSE(team.has_value());
  CHECK(team.error().code == ErrorCode::kUsage);
}

// Run by its own ctest case with OMP_THREAD_LIMIT=1 in the environment, which OpenMP reads before main().
TEST_CASE("fewer threads than asked for is an error" * doctest::skip()) {
  const auto team = Team::create(synthetic("numa:1 core:4 pu:1"));
  REQUIRE_FALSE(team.has_value());
  CHECK(team.error().code == ErrorCode::kRuntime);
  CHECK(team.error().message ==
        "OpenMP gave fewer than the 4 threads asked for; look at OMP_THREAD_LIMIT and `ulimit -u`, or ask for fewer "
        "threads");
}
