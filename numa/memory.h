// Memory that lives on one NUMA node. Hides mmap, mbind and huge pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/result.h"
#include "numa/topology.h"

namespace cpuinfer::numa {

/// What memory is made of.
enum class Pages {
  kHuge,     ///< transparent huge pages where the kernel allows them
  kSmall,    ///< pages of 4 KiB, to measure what the others gain
  kLargest,  ///< for weights: pages of 1 GiB if the node has enough reserved ones free, else as kHuge
};

/// How many reserved pages of 1 GiB `bytes` bytes of Pages::kLargest take on a node (an index); 0: they take none,
/// because the node has too few that were free when the topology was read, the buffer is smaller, or nothing is bound
/// to nodes. What takes them takes no free memory. Pure.
int64_t giant_pages_for(int64_t bytes, int node, const Topology& topology);

/// Part of a buffer and the node that its pages are asked for on.
struct NodeSlice {
  const std::byte* data = nullptr;
  int64_t bytes = 0;
  int node = 0;
};

/// How allocate_spread cuts `bytes` bytes: on each node. Pure.
std::vector<int64_t> spread_bytes(int64_t bytes, int nodes);

/// Move-only bytes that belong to one node: page-aligned (2 MiB-aligned from 2 MiB on), zero-filled. Pages are taken at
/// the first write. When the machine has memory on more than one node the kernel is told to take them from that node;
/// it takes them elsewhere rather than kill the process when the node is full, so plan before allocating. Not
/// thread-safe to move; the bytes are plain memory.
///
/// Pages of 1 GiB exist only where the administrator has reserved them, for programs like this one, and are taken at
/// once, zeroed by the calling thread. Reserved pages of 2 MiB are left to whoever they were reserved for: transparent
/// ones are as large and need no reservation.
class NodeBuffer {
 public:
  /// An empty buffer: data() == nullptr, size() == 0.
  NodeBuffer() = default;

  /// `bytes` zeros on node `node` (an index, see Topology::home). Zero bytes give an empty buffer.
  /// Errors: kUsage (negative), kDoesNotFit (the system has no such memory, or no longer the reserved pages that
  /// giant_pages_for() counts on; the message has the numbers), kRuntime (the system refuses to bind memory to the
  /// node; never with Topology::unpinned()).
  static Result<NodeBuffer> allocate(int64_t bytes, int node, const Topology& topology, Pages pages = Pages::kHuge);

  /// `bytes` zeros in one piece that lies on nodes 0 .. nodes-1 in slices of about equal size, whole pages each: for
  /// what all workers use. Errors: as allocate().
  static Result<NodeBuffer> allocate_spread(int64_t bytes, int nodes, const Topology& topology);

  NodeBuffer(NodeBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        mapped_(std::exchange(other.mapped_, 0)),
        node_(std::exchange(other.node_, 0)),
        nodes_(std::exchange(other.nodes_, 1)) {}
  NodeBuffer& operator=(NodeBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapped_, other.mapped_);
    std::swap(node_, other.node_);
    std::swap(nodes_, other.nodes_);
    return *this;
  }
  NodeBuffer(const NodeBuffer&) = delete;
  NodeBuffer& operator=(const NodeBuffer&) = delete;
  ~NodeBuffer();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  /// The bytes asked for.
  int64_t size() const { return size_; }
  /// The node asked for; of a spread buffer the first.
  int node() const { return node_; }
  /// Which part lies where: one slice, or those of a spread buffer.
  std::vector<NodeSlice> slices() const;
  /// How much of it lies in huge pages now; -1 if the kernel does not say. Reads /proc/self/smaps: takes a while.
  int64_t huge_page_bytes() const;

  /// The bytes as elements of T. REQUIRES: T is trivially copyable and valid when all its bytes are zero.
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
  int64_t mapped_ = 0;  // bytes, whole pages
  int node_ = 0;
  int nodes_ = 1;  // that it is spread over, from node_ on
};

}  // namespace cpuinfer::numa
