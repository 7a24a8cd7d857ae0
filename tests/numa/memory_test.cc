#include "numa/memory.h"

#include <doctest/doctest.h>
#include <numaif.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/format.h"
#include "base/types.h"
#include "tests/numa/topologies.h"

using namespace cpuinfer;
namespace fs = std::filesystem;
using numa::machine;
using numa::NodeBuffer;
using numa::Topology;

namespace {

// What the library asks the system for, and what the system does.
struct System {
  int refusal = 0;              // errno of mbind
  bool pretend_giant = false;   // pages of 1 GiB are there; small ones stand in for them
  bool populate_fails = false;  // and are gone again when they are to be taken
  int binds = 0;
  int policy = -1;                                                   // of the last mbind
  int64_t giant_bytes = 0, populated_bytes = 0, unmapped_bytes = 0;  // of the largest munmap
};
System g_system;
constexpr int kPopulateWrite = 23;

}  // namespace

// The library's calls come here: it is linked into this program.
extern "C" long mbind(void* begin, unsigned long bytes, int policy, const unsigned long* nodes, unsigned long most,
                      unsigned flags) {
  ++g_system.binds;
  g_system.policy = policy;
  if (g_system.refusal == 0) return syscall(SYS_mbind, begin, bytes, policy, nodes, most, flags);
  errno = g_system.refusal;
  return -1;
}

extern "C" void* mmap(void* at, size_t bytes, int protection, int flags, int file, off_t offset) noexcept {
  if (g_system.pretend_giant && (flags & MAP_HUGETLB) != 0) {
    g_system.giant_bytes = static_cast<int64_t>(bytes);
    flags = MAP_PRIVATE | MAP_ANONYMOUS;
  }
  return reinterpret_cast<void*>(syscall(SYS_mmap, at, bytes, protection, flags, file, offset));
}

extern "C" int munmap(void* at, size_t bytes) noexcept {
  g_system.unmapped_bytes = std::max(g_system.unmapped_bytes, static_cast<int64_t>(bytes));
  return static_cast<int>(syscall(SYS_munmap, at, bytes));
}

extern "C" int madvise(void* at, size_t bytes, int advice) noexcept {
  if (advice != kPopulateWrite) return static_cast<int>(syscall(SYS_madvise, at, bytes, advice));
  g_system.populated_bytes = static_cast<int64_t>(bytes);
  if (!g_system.populate_fails) return 0;
  errno = ENOMEM;
  return -1;
}

namespace {

/// The /sys of this machine's node 0 with all CPUs, and of a node 1 with memory only.
class FakeRoot {
 public:
  FakeRoot() : root_(fs::temp_directory_path() / format("cpuinfer_memory_test_{}", getpid())) {
    fs::remove_all(root_);
    write("sys/devices/system/cpu/online", "0-63");
    write("sys/devices/system/node/online", "0-1");
    write("sys/devices/system/node/node0/cpulist", "0-63");
    for (int id : {0, 1})
      write(format("sys/devices/system/node/node{}/meminfo", id), format("Node {} MemTotal: 8388608 kB\n", id));
    write("proc/self/status", "Mems_allowed_list:\t0-1\n");
  }
  ~FakeRoot() { fs::remove_all(root_); }
  void reserve(int giant_pages) const {
    const fs::path pages = "sys/devices/system/node/node0/hugepages/hugepages-1048576kB";
    write(pages / "nr_hugepages", format("{}", giant_pages));
    write(pages / "free_hugepages", format("{}", giant_pages));
  }
  Topology topology() const {
    auto topology = Topology::detect(root_);
    REQUIRE(topology.has_value());
    REQUIRE(topology->binds_memory());
    return std::move(topology).value();
  }

 private:
  void write(const fs::path& path, std::string_view text) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text << '\n';
  }
  fs::path root_;
};

uintptr_t address(const NodeBuffer& buffer) { return reinterpret_cast<uintptr_t>(buffer.data()); }

}  // namespace

TEST_CASE("a buffer is zeroed, aligned and writable to its last byte") {
  const Topology topology = machine();
  for (int64_t bytes : {int64_t{1}, int64_t{63}, 4_KiB, 4_KiB + 1, 2_MiB - 1, 2_MiB, 2_MiB + 1, 9_MiB + 13}) {
    auto buffer = NodeBuffer::allocate(bytes, 0, topology);
    REQUIRE(buffer.has_value());
    CHECK(buffer->size() == bytes);
    CHECK(address(*buffer) % 4096 == 0);
    if (bytes >= 2_MiB) CHECK(address(*buffer) % (2 << 20) == 0);
    int64_t nonzero = 0;
    for (int64_t i = 0; i < bytes; ++i) nonzero += buffer->data()[i] != std::byte{0};
    CHECK(nonzero == 0);
    std::memset(buffer->data(), 0xa5, static_cast<size_t>(bytes));
    CHECK(buffer->as<uint8_t>()[bytes - 1] == 0xa5);
  }
}

TEST_CASE("small pages when asked for, huge ones otherwise where the kernel has them") {
  const Topology topology = machine();
  auto small = NodeBuffer::allocate(8_MiB, 0, topology, numa::Pages::kSmall);
  auto huge = NodeBuffer::allocate(8_MiB, 0, topology);
  REQUIRE((small.has_value() && huge.has_value()));
  std::memset(small->data(), 1, 8_MiB);
  std::memset(huge->data(), 1, 8_MiB);
  if (huge->huge_page_bytes() < 0) {
    MESSAGE("skipped: this kernel does not say what pages it uses");
    return;
  }
  CHECK(small->huge_page_bytes() == 0);
  const std::string& mode = topology.huge_pages().transparent;
  if (mode == "always" || mode == "madvise")
    CHECK(huge->huge_page_bytes() > 0);
  else
    CHECK(huge->huge_page_bytes() == 0);
}

TEST_CASE("moving hands the bytes over") {
  const Topology topology = machine();
  auto first = NodeBuffer::allocate(100, 0, topology);
  auto second = NodeBuffer::allocate(3_MiB, 1, topology);
  REQUIRE((first.has_value() && second.has_value()));
  std::byte* const data = second->data();
  data[7] = std::byte{42};
  NodeBuffer moved(std::move(*second));
  CHECK(moved.data() == data);
  CHECK(moved.size() == 3_MiB);
  CHECK(moved.node() == 1);
  CHECK(second->data() == nullptr);
  CHECK(second->size() == 0);
  *first = std::move(moved);
  CHECK(first->data() == data);
  CHECK(first->data()[7] == std::byte{42});
}

TEST_CASE("no bytes give an empty buffer, negative ones an error") {
  const Topology topology = machine();
  const auto empty = NodeBuffer::allocate(0, 0, topology);
  REQUIRE(empty.has_value());
  CHECK(empty->data() == nullptr);
  const auto negative = NodeBuffer::allocate(-5, 0, topology);
  REQUIRE_FALSE(negative.has_value());
  CHECK(negative.error().code == ErrorCode::kUsage);
  CHECK(negative.error().message == "cannot allocate -5 bytes");
}

TEST_CASE("more than the system has is an error with the numbers") {
  const Topology topology = machine();
  for (int64_t bytes : {int64_t{1} << 48, int64_t{1} << 57, INT64_MAX}) {
    const auto result = NodeBuffer::allocate(bytes, 0, topology);
    REQUIRE_FALSE(result.has_value());
    CHECK(result.error().code == ErrorCode::kDoesNotFit);
    CHECK(result.error().message.find(std::to_string(bytes) + " bytes) for node 0") != std::string::npos);
    CHECK(result.error().message.find("smaller context or model") != std::string::npos);
  }
}

TEST_CASE("memory is bound to its node where the machine has several") {
  const FakeRoot root;
  const Topology topology = root.topology();
  g_system = {};
  auto buffer = NodeBuffer::allocate(4_MiB, 0, topology);
  if (!buffer.has_value()) {
    MESSAGE("SKIPPED: ", buffer.error().message);
    return;
  }
  CHECK(g_system.binds == 1);
  int policy = -1;
  unsigned long nodes[16] = {};
  REQUIRE(get_mempolicy(&policy, nodes, 1024, buffer->data(), MPOL_F_ADDR) == 0);
  CHECK(policy == MPOL_PREFERRED);
  CHECK(nodes[0] == 1);
  // Not on a machine with one memory.
  if (!machine().binds_memory()) {
    REQUIRE(NodeBuffer::allocate(4_MiB, 0, machine()).has_value());
    CHECK(g_system.binds == 1);
  }
}

TEST_CASE("a refused binding is an error that says what to allow, and none without pinning") {
  const FakeRoot root;
  const Topology topology = root.topology();
  const auto message = [&](int refusal) {
    g_system = {.refusal = refusal};
    const auto buffer = NodeBuffer::allocate(3_MiB, 0, topology);
    g_system.refusal = 0;
    REQUIRE_FALSE(buffer.has_value());
    CHECK(buffer.error().code == ErrorCode::kRuntime);
    return buffer.error().message;
  };
  CHECK(
      message(EPERM) ==
      "4.0 MiB could not be bound to NUMA node 0 (mbind: Operation not permitted); give the container CAP_SYS_NICE or "
      "allow mbind in its seccomp profile, or run with --no-pin: memory then lies where the system wants, and may be "
      "slower");
  CHECK(message(ENOSYS).find("(mbind: Function not implemented); give the container") != std::string::npos);
  CHECK(message(EINVAL).find("(mbind: Invalid argument); let the process's cpuset allow this node (cpuset.mems), or") !=
        std::string::npos);
  g_system = {.refusal = EPERM};
  const auto anywhere = NodeBuffer::allocate(3_MiB, 0, topology.unpinned());
  CHECK(anywhere.has_value());
  CHECK(g_system.binds == 0);
  g_system = {};
}

// hwloc can pretend that this machine has two nodes: node 63 is not there, so the system itself refuses it.
TEST_CASE("memory of a node that is not there") {
  setenv("HWLOC_SYNTHETIC", "numa:2(indexes=0,63) core:1 pu:1", 1);
  setenv("HWLOC_THISSYSTEM", "1", 1);
  const Topology topology = machine();
  unsetenv("HWLOC_SYNTHETIC");
  unsetenv("HWLOC_THISSYSTEM");
  if (topology.nodes().size() != 2) {
    MESSAGE("skipped: this process may not use both CPU 0 and CPU 1");
    return;
  }
  REQUIRE(topology.nodes()[1].id == 63);
  const auto not_there = NodeBuffer::allocate(4_MiB, 1, topology);
  REQUIRE_FALSE(not_there.has_value());
  CHECK(not_there.error().message.starts_with("4.0 MiB could not be bound to NUMA node 63 (mbind: "));
}

TEST_CASE("weights take reserved pages of 1 GiB where their node has enough of them") {
  FakeRoot root;
  root.reserve(2);
  const Topology topology = root.topology();
  REQUIRE(topology.home(0).reserved.free_1g == 2);
  g_system = {.pretend_giant = true};
  {
    const auto buffer = NodeBuffer::allocate(1_GiB + 1, 0, topology, numa::Pages::kLargest);
    REQUIRE(buffer.has_value());
    CHECK(buffer->size() == 1_GiB + 1);
    CHECK(g_system.giant_bytes == 2_GiB);
    CHECK(g_system.populated_bytes == 2_GiB);
    CHECK(g_system.policy == MPOL_BIND);
  }
  CHECK(g_system.unmapped_bytes == 2_GiB);

  // Too few, not asked for, too small, not pinned: transparent ones.
  const auto uses_transparent = [&](int64_t bytes, numa::Pages pages, const Topology& where) {
    g_system = {.pretend_giant = true};
    const auto buffer = NodeBuffer::allocate(bytes, 0, where, pages);
    REQUIRE(buffer.has_value());
    CHECK(g_system.giant_bytes == 0);
  };
  uses_transparent(2_GiB + 1, numa::Pages::kLargest, topology);
  uses_transparent(1_GiB, numa::Pages::kHuge, topology);
  uses_transparent(1_GiB - 1, numa::Pages::kLargest, topology);
  uses_transparent(1_GiB, numa::Pages::kLargest, topology.unpinned());

  // Others were faster: what was mapped is given back, and nothing is taken from free memory, which was not planned for
  // it.
  g_system = {.pretend_giant = true, .populate_fails = true};
  const auto late = NodeBuffer::allocate(1_GiB, 0, topology, numa::Pages::kLargest);
  REQUIRE_FALSE(late.has_value());
  CHECK(late.error().code == ErrorCode::kDoesNotFit);
  CHECK(
      late.error().message.starts_with("1 of the reserved pages of 1 GiB of node 0 were free and cannot be taken now "
                                       "(Cannot allocate memory); end the"));
  CHECK(g_system.giant_bytes == 1_GiB);
  CHECK(g_system.unmapped_bytes == 1_GiB);
  g_system = {};
}

TEST_CASE("where no pages of 1 GiB are reserved weights lie in transparent ones") {
  auto buffer = NodeBuffer::allocate(1_GiB, 0, machine(), numa::Pages::kLargest);
  REQUIRE(buffer.has_value());
  CHECK(address(*buffer) % (2 << 20) == 0);
  buffer->data()[1_GiB - 1] = std::byte{1};
}
