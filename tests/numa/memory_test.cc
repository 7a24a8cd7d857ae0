#include "numa/memory.h"

#include <doctest/doctest.h>
#include <numaif.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "base/log.h"
#include "base/types.h"

using namespace cpuinfer;
using numa::NodeBuffer;
using numa::Topology;

namespace {

Topology machine() {
  auto topology = Topology::detect();
  REQUIRE(topology.has_value());
  return std::move(topology).value();
}

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

// hwloc can pretend that this machine has two nodes. Node 0 is there, so its policy can be read back; node 63 is not,
// so the system refuses it.
TEST_CASE("memory is bound to its node, and a refusal is a warning") {
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

  std::string warning;
  set_log_sink([&](LogLevel, std::string_view line) { warning = line; });
  auto there = NodeBuffer::allocate(4_MiB, 0, topology);
  const std::string warning_there = warning;
  warning.clear();
  auto not_there = NodeBuffer::allocate(4_MiB, 1, topology);
  set_log_sink(nullptr);

  REQUIRE(there.has_value());
  int policy = -1;
  unsigned long nodes[16] = {};
  if (!warning_there.empty() || get_mempolicy(&policy, nodes, 1024, there->data(), MPOL_F_ADDR) != 0) {
    MESSAGE("skipped: the system refuses memory policies: ", warning_there);
  } else {
    CHECK(policy == MPOL_PREFERRED);
    CHECK(nodes[0] == 1);
  }
  REQUIRE(not_there.has_value());
  CHECK(warning.starts_with("memory could not be bound to NUMA node 63 ("));
  not_there->data()[0] = std::byte{1};  // usable all the same
}
