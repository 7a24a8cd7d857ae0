#include "numa/placement.h"

#include <doctest/doctest.h>
#include <numaif.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "base/format.h"
#include "base/types.h"
#include "numa/memory.h"

using namespace cpuinfer;
using numa::count_pages;
using numa::NodeBuffer;
using numa::PageCount;
using numa::Topology;

namespace {
int g_refusal = 0;      // the next calls of move_pages fail with this
int64_t g_largest = 0;  // pages in one call
}  // namespace

// The library's calls come here: it is linked into this program.
extern "C" long move_pages(int pid, unsigned long count, void** pages, const int* nodes, int* status, int flags) {
  g_largest = std::max(g_largest, static_cast<int64_t>(count));
  CHECK(nodes == nullptr);
  if (g_refusal == 0) return syscall(SYS_move_pages, pid, count, pages, nodes, status, flags);
  errno = g_refusal;
  return -1;
}

namespace {

/// 8 MiB of small pages on node 0.
NodeBuffer buffer() {
  const auto topology = Topology::detect();
  REQUIRE(topology.has_value());
  auto made = NodeBuffer::allocate(8_MiB, 0, *topology, numa::Pages::kSmall);
  REQUIRE(made.has_value());
  return std::move(made).value();
}

int home_id() { return Topology::detect()->home(0).id; }

/// False where this test's own sandbox forbids the question.
bool can_ask(const NodeBuffer& memory) {
  if (count_pages(memory.data(), 1, 0, 1).has_value()) return true;
  MESSAGE("SKIPPED: this system does not say where memory lies");
  return false;
}

}  // namespace

TEST_CASE("touched pages are on their node, untouched ones nowhere") {
  NodeBuffer memory = buffer();
  if (!can_ask(memory)) return;
  std::memset(memory.data(), 1, 5_MiB);
  const auto count = count_pages(memory.data(), memory.size(), home_id(), 1 << 20);
  REQUIRE(count.has_value());
  CHECK(count->local == 5 * 256);
  CHECK(count->other == 0);
  CHECK(count->untouched == 3 * 256);
  CHECK(g_largest <= 1024);
  const auto elsewhere = count_pages(memory.data(), memory.size(), home_id() + 1, 1 << 20);
  REQUIRE(elsewhere.has_value());
  CHECK(elsewhere->local == 0);
  CHECK(elsewhere->other == 5 * 256);
}

TEST_CASE("only read: the page of zeros counts as untouched") {
  NodeBuffer memory = buffer();
  if (!can_ask(memory)) return;
  volatile std::byte* const bytes = memory.data();
  for (int64_t at = 0; at < memory.size(); at += 4096) (void)bytes[at];
  const auto count = count_pages(memory.data(), memory.size(), home_id(), 1 << 20);
  REQUIRE(count.has_value());
  CHECK(count->untouched == 2048);
}

TEST_CASE("at most so many pages are looked at, evenly spread") {
  NodeBuffer memory = buffer();
  if (!can_ask(memory)) return;
  std::memset(memory.data(), 1, 4_MiB);
  const auto count = count_pages(memory.data(), memory.size(), home_id(), 100);
  REQUIRE(count.has_value());
  CHECK(count->local == 50);
  CHECK(count->untouched == 50);
  const auto one = count_pages(memory.data(), memory.size(), home_id(), 1);
  REQUIRE(one.has_value());
  CHECK(one->local == 1);
  // Bytes of two pages, and none.
  CHECK(count_pages(memory.data() + 4090, 10, home_id(), 100)->local == 2);
  CHECK(count_pages(nullptr, 0, home_id(), 100)->local == 0);
}

TEST_CASE("transparent huge pages count by their small pages") {
  const auto topology = Topology::detect();
  auto memory = NodeBuffer::allocate(4_MiB, 0, *topology);
  REQUIRE(memory.has_value());
  if (!can_ask(*memory)) return;
  std::memset(memory->data(), 1, 4_MiB);
  CHECK(count_pages(memory->data(), memory->size(), home_id(), 1 << 20)->local == 1024);
}

TEST_CASE("a system that forbids the question is an error that says what to allow") {
  NodeBuffer memory = buffer();
  for (int refusal : {EPERM, ENOSYS}) {
    g_refusal = refusal;
    const auto count = count_pages(memory.data(), memory.size(), 0, 10);
    g_refusal = 0;
    REQUIRE_FALSE(count.has_value());
    CHECK(count.error().code == ErrorCode::kRuntime);
    CHECK(count.error().message == std::string("the system does not say on which node memory lies (move_pages: ") +
                                       std::strerror(refusal) +
                                       "); allow move_pages in the seccomp profile of the container, or give it "
                                       "CAP_SYS_NICE");
  }
}

TEST_CASE("why pages are elsewhere: what the system shows, likeliest first") {
  namespace fs = std::filesystem;
  const fs::path root = fs::temp_directory_path() / cpuinfer::format("cpuinfer_placement_test_{}", getpid());
  fs::remove_all(root);
  const auto write = [&](const fs::path& path, std::string_view text) {
    fs::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text << '\n';
  };
  const auto free_on_node_0 = [&](int64_t kib) {
    write("sys/devices/system/node/node0/meminfo",
          cpuinfer::format("Node 0 MemTotal: 8388608 kB\nNode 0 MemFree: {} kB", kib));
  };
  // Node 0 has this machine's CPUs, node 1 memory only.
  write("sys/devices/system/cpu/online", "0-63");
  write("sys/devices/system/node/online", "0-1");
  write("sys/devices/system/node/node0/cpulist", "0-63");
  write("sys/devices/system/node/node1/meminfo", "Node 1 MemTotal: 8388608 kB");
  write("proc/self/status", "Mems_allowed_list:\t0-1");
  write("proc/sys/kernel/numa_balancing", "0");
  free_on_node_0(4194304);
  const auto topology = Topology::detect(root);
  REQUIRE(topology.has_value());
  REQUIRE(topology->binds_memory());
  const auto cause = [&](const Topology& of) { return numa::misplacement_cause(of, 0, root); };

  CHECK(cause(*topology) == "another program took the memory of node 0 while this one loaded");
  free_on_node_0(100 * 1024);
  CHECK(cause(*topology) ==
        "node 0 was full: it has 100.0 MiB free now; end other programs that use it, or plan for less");
  write("proc/sys/kernel/numa_balancing", "1");
  CHECK(cause(*topology).starts_with("node 0 was full"));
  free_on_node_0(4194304);
  CHECK(cause(*topology) == "automatic NUMA balancing may move pages (sysctl kernel.numa_balancing is 1); set it to 0");
  CHECK(cause(topology->unpinned()) == "memory was not bound to nodes (--no-pin), so the system chose");
  fs::remove_all(root);
}
