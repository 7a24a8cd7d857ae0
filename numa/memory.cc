#include "numa/memory.h"

#include <numaif.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/format.h"
#include "base/log.h"
#include "base/types.h"
#include "numa/memory_limit.h"
#include "numa/shard.h"

namespace cpuinfer::numa {
namespace {

constexpr int64_t kHugePage = 2_MiB;
constexpr int64_t kGiantPage = 1_GiB;

int64_t mapped_bytes(int64_t bytes) {
  const int64_t page = bytes >= kHugePage ? kHugePage : static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  return round_up(bytes, page);
}

/// Maps `bytes` zeros at a multiple of 2 MiB (`bytes` is one): maps 2 MiB more and gives back both ends. nullptr if
/// the system refuses.
void* map_huge_aligned(int64_t bytes) {
  const auto length = static_cast<size_t>(bytes + kHugePage);
  void* const raw = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(raw);
  char* const end = begin + length;
  const auto misaligned = reinterpret_cast<uintptr_t>(begin) % static_cast<uintptr_t>(kHugePage);
  char* const data = misaligned == 0 ? begin : begin + (static_cast<uintptr_t>(kHugePage) - misaligned);
  if (data != begin) munmap(begin, static_cast<size_t>(data - begin));
  if (data + bytes != end) munmap(data + bytes, static_cast<size_t>(end - (data + bytes)));
  return data;
}

/// Tells the kernel where to take the pages of [data, data + bytes) from. errno if it refuses.
bool set_policy(void* data, int64_t bytes, int policy, int id) {
  constexpr int kBits = 8 * sizeof(unsigned long);
  std::vector<unsigned long> nodes(static_cast<size_t>(id / kBits + 1), 0);
  nodes.back() = 1ul << (id % kBits);
  // The kernel reads one bit less than it is told.
  return mbind(data, static_cast<unsigned long>(bytes), policy, nodes.data(), nodes.size() * kBits + 1, 0) == 0;
}

/// Asks for the pages of [data, data + bytes) on a node. Preferred, not strict: with a strict policy the kernel kills
/// the process when the node is full, even if the neighbour has room.
Result<void> bind_to_node(void* data, int64_t bytes, int node, const Topology& topology) {
  if (!topology.binds_memory()) return {};
  const int id = topology.home(node).id;
  if (set_policy(data, bytes, MPOL_PREFERRED, id)) return {};
  const int error = errno;
  return fail(
      ErrorCode::kRuntime,
      format("{} could not be bound to NUMA node {} (mbind: {}); {}, or run with --no-pin: memory then lies where "
             "the system wants, and may be slower",
             format_bytes(bytes), id, std::strerror(error),
             error == EINVAL ? "let the process's cpuset allow this node (cpuset.mems)"
                             : "give the container CAP_SYS_NICE or allow mbind in its seccomp profile"));
}

/// Maps `bytes` zeros in reserved pages of 1 GiB (`bytes` is a multiple) of node `id`. nullptr and
/// errno if there are not enough.
/// All pages are taken at once: a page that turns out to be missing at the first write would kill the process.
void* map_giant(int64_t bytes, int id, bool bound) {
  constexpr int kOneGiB = 30 << MAP_HUGE_SHIFT;  // MAP_HUGE_1GB of <linux/mman.h>
  constexpr int kPopulateWrite = 23;             // MADV_POPULATE_WRITE, Linux 5.14
  const auto length = static_cast<size_t>(bytes);
  void* const data =
      mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | kOneGiB, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  // Strict here: the kernel then says that the node has too few instead of taking a neighbour's.
  if ((!bound || set_policy(data, bytes, MPOL_BIND, id)) && madvise(data, length, kPopulateWrite) == 0) return data;
  const int error = errno;
  munmap(data, length);
  errno = error;
  return nullptr;
}

}  // namespace

int64_t giant_pages_for(int64_t bytes, int node, const Topology& topology) {
  if (bytes < kGiantPage || !topology.pins_threads()) return 0;
  const int64_t pages = ceil_div(bytes, kGiantPage);
  return pages <= topology.home(node).reserved.free_1g ? pages : 0;
}

Result<NodeBuffer> NodeBuffer::allocate(int64_t bytes, int node, const Topology& topology, Pages pages) {
  ENSURE(node >= 0, "nodes are counted from 0");
  if (bytes < 0) return fail(ErrorCode::kUsage, format("cannot allocate {} bytes", bytes));
  NodeBuffer buffer;
  buffer.node_ = node;
  if (bytes == 0) return buffer;

  const auto does_not_fit = [&] {
    const MemoryLimit limit = available_memory();
    return fail(ErrorCode::kDoesNotFit,
                format("the system has no {} ({} bytes) for node {}: {} ({}); free memory, raise the limit, or use a "
                       "smaller context or model",
                       format_bytes(bytes), bytes, node, format_bytes(limit.bytes), limit.reason));
  };
  // Beyond any address space; also keeps the rounding below from overflowing.
  if (bytes > (int64_t{1} << 56)) return does_not_fit();

  if (const int64_t giant = pages == Pages::kLargest ? giant_pages_for(bytes, node, topology) : 0; giant > 0) {
    const int id = topology.home(node).id;
    void* const taken = map_giant(giant * kGiantPage, id, topology.binds_memory());
    // Not from free memory instead: the plan has left these bytes out of what must be free.
    if (taken == nullptr)
      return fail(ErrorCode::kDoesNotFit,
                  format("{} of the reserved pages of 1 GiB of node {} were free and cannot be taken now ({}); end the "
                         "program that took them and start again, or give the reserved pages back to the system",
                         giant, id, std::strerror(errno)));
    log_debug("node {}: {} in {} reserved pages of 1 GiB", id, format_bytes(bytes), giant);
    buffer.data_ = static_cast<std::byte*>(taken);
    buffer.size_ = bytes;
    buffer.mapped_ = giant * kGiantPage;
    return buffer;
  }

  const int64_t length = mapped_bytes(bytes);
  void* data = nullptr;
  if (length >= kHugePage) {
    data = map_huge_aligned(length);
  } else {
    data = mmap(nullptr, static_cast<size_t>(length), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) data = nullptr;
  }
  if (data == nullptr) return does_not_fit();
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.size_ = bytes;
  buffer.mapped_ = length;

  // Refused where the kernel has no huge pages, which costs speed and nothing else; `doctor` reports it.
  if (length >= kHugePage)
    madvise(data, static_cast<size_t>(length), pages == Pages::kSmall ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
  TRY(bind_to_node(data, length, node, topology));
  return buffer;
}

std::vector<int64_t> spread_bytes(int64_t bytes, int nodes) {
  // Slices of whole huge pages where that leaves no node far from its part, else of small ones.
  const int64_t page = bytes >= 16 * kHugePage * nodes ? kHugePage : 4_KiB;
  const int64_t pages = ceil_div(bytes, page);
  std::vector<int64_t> slices;
  for (int node = 0; node < nodes; ++node) {
    const Range part = split(pages, nodes, node);
    slices.push_back(std::min(part.end * page, bytes) - std::min(part.begin * page, bytes));
  }
  return slices;
}

Result<NodeBuffer> NodeBuffer::allocate_spread(int64_t bytes, int nodes, const Topology& topology) {
  TRY_ASSIGN(NodeBuffer buffer, allocate(bytes, 0, topology));
  buffer.nodes_ = nodes;
  for (const NodeSlice& slice : buffer.slices()) {
    if (slice.node != 0)
      TRY(bind_to_node(buffer.data_ + (slice.data - buffer.data_), slice.bytes, slice.node, topology));
  }
  return buffer;
}

std::vector<NodeSlice> NodeBuffer::slices() const {
  std::vector<NodeSlice> slices;
  const std::byte* next = data_;
  const std::vector<int64_t> sizes = spread_bytes(size_, nodes_);
  for (int i = 0; i < nodes_; ++i) {
    if (sizes[i] > 0) slices.push_back({next, sizes[i], node_ + i});
    next += sizes[i];
  }
  return slices;
}

int64_t NodeBuffer::huge_page_bytes() const {
  // A mapping is a header line, "7f00-7f01 rw-p ...", and lines such as "AnonHugePages:  2048 kB". The kernel may have
  // merged this one with neighbours of the same kind, so that more than the buffer is counted.
  std::ifstream file("/proc/self/smaps");
  const auto begin = reinterpret_cast<uintptr_t>(data_);
  bool inside = false;
  int64_t bytes = -1;
  for (std::string line; std::getline(file, line);) {
    uintptr_t from = 0;
    uintptr_t to = 0;
    int64_t kib = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2)
      inside = from < begin + static_cast<uintptr_t>(size_) && begin < to;
    else if (inside && (std::sscanf(line.c_str(), "AnonHugePages: %" SCNd64 " kB", &kib) == 1 ||
                        std::sscanf(line.c_str(), "Private_Hugetlb: %" SCNd64 " kB", &kib) == 1))
      bytes = std::max<int64_t>(bytes, 0) + kib * 1024;
  }
  return std::min(bytes, size_);
}

NodeBuffer::~NodeBuffer() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(mapped_));
}

}  // namespace cpuinfer::numa
