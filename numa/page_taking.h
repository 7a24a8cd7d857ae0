// Taking the pages of buffers before they are used, so that nothing is missing later.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>

#include "numa/memory.h"
#include "numa/team.h"

namespace cpuinfer::numa {

struct PageWatch {
  /// Called by one thread now and then with bytes done and bytes in all.
  std::function<void(int64_t done_bytes, int64_t total_bytes)> progress = {};
  /// When it becomes true, taking stops. May be nullptr.
  const std::atomic<bool>* cancel = nullptr;
};

/// Takes the pages of slices of buffers (NodeBuffer::slices) from the system now, which fills those that are new with
/// zeros; bytes that were written stay as they are. The workers of a node take the pages of its slices, in parallel;
/// pages are of the size and on the node that the buffer asks for. False if it was cancelled.
/// REQUIRES: nodes of slices are below team.nodes(); nobody else writes there meanwhile.
bool take_pages(std::span<const NodeSlice> slices, Team& team, const PageWatch& watch = {});

}  // namespace cpuinfer::numa
