#include "numa/page_taking.h"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "base/types.h"

using namespace cpuinfer;
using numa::NodeBuffer;

namespace {

bool g_old_kernel = false;  // without MADV_POPULATE_WRITE

// Pages of the buffer that are in memory.
int64_t present(const NodeBuffer& buffer) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages((static_cast<size_t>(buffer.size()) + page - 1) / page);
  REQUIRE(mincore(const_cast<std::byte*>(buffer.data()), static_cast<size_t>(buffer.size()), pages.data()) == 0);
  int64_t count = 0;
  for (const unsigned char flags : pages) count += flags & 1;
  return count;
}

}  // namespace

// The library's calls come here: it is linked into this program.
extern "C" int madvise(void* at, size_t bytes, int advice) noexcept {
  if (g_old_kernel && advice == 23) {
    errno = EINVAL;
    return -1;
  }
  return static_cast<int>(syscall(SYS_madvise, at, bytes, advice));
}

TEST_CASE("pages are there afterwards, on every node, and what was written stays") {
  const auto topology = numa::Topology::detect();
  REQUIRE(topology);
  for (const bool old_kernel : {false, true}) {
    g_old_kernel = old_kernel;
    CAPTURE(old_kernel);
    for (const int nodes : {1, 3}) {
      auto team = numa::Team::create(topology->unpinned(), {.threads = 4, .nodes = nodes});
      REQUIRE(team);
      auto spread = NodeBuffer::allocate_spread(70_MiB + 12345, nodes, topology->unpinned());
      auto small = NodeBuffer::allocate(5000, nodes - 1, topology->unpinned());
      REQUIRE(spread);
      REQUIRE(small);
      CHECK(present(*spread) == 0);
      spread->data()[1_MiB] = std::byte{7};
      std::vector<numa::NodeSlice> slices = spread->slices();
      for (const numa::NodeSlice& slice : small->slices()) slices.push_back(slice);
      int64_t last = 0;
      REQUIRE(numa::take_pages(slices, **team, {.progress = [&](int64_t done, int64_t total) {
                                 CHECK(done >= last);
                                 CHECK(total == 70_MiB + 12345 + 5000);
                                 last = done;
                               }}));
      CHECK(last == 70_MiB + 12345 + 5000);
      CHECK(present(*spread) == (70_MiB + 12345 + 4095) / 4096);
      CHECK(present(*small) == 2);
      CHECK(spread->data()[1_MiB] == std::byte{7});
      CHECK(spread->data()[70_MiB] == std::byte{0});
    }
  }
  g_old_kernel = false;
}

TEST_CASE("taking pages can be stopped") {
  const auto topology = numa::Topology::detect();
  REQUIRE(topology);
  auto team = numa::Team::create(topology->unpinned(), {.threads = 1, .nodes = 1});
  REQUIRE(team);
  auto buffer = NodeBuffer::allocate(100_MiB, 0, topology->unpinned());
  REQUIRE(buffer);
  std::atomic<bool> cancel = false;
  CHECK_FALSE(numa::take_pages(buffer->slices(), **team,
                               {.progress = [&](int64_t, int64_t) { cancel = true; }, .cancel = &cancel}));
  CHECK(present(*buffer) < 100_MiB / 4096);
  CHECK(numa::take_pages({}, **team));
}
