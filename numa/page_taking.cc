#include "numa/page_taking.h"

#include <sys/mman.h>

#include <algorithm>
#include <vector>

#include "base/types.h"

namespace cpuinfer::numa {
namespace {

constexpr int64_t kSmallPage = 4_KiB;
// Between two looks at `cancel`, and what a worker takes at a time: some milliseconds.
constexpr int64_t kPieceBytes = 32_MiB;

struct Piece {
  std::byte* data;
  int64_t bytes;
};

void take(const Piece& piece) {
  constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, Linux 5.14
  if (madvise(piece.data, static_cast<size_t>(round_up(piece.bytes, kSmallPage)), kPopulateWrite) == 0) return;
  // An older kernel: a write to every page that changes nothing. A page of zeros that was only read is not one of its
  // own, hence not a mere read.
  for (int64_t offset = 0; offset < piece.bytes; offset += kSmallPage)
    __atomic_fetch_or(reinterpret_cast<unsigned char*>(piece.data + offset), 0, __ATOMIC_RELAXED);
}

}  // namespace

bool take_pages(std::span<const NodeSlice> slices, Team& team, const PageWatch& watch) {
  std::vector<std::vector<Piece>> pieces(static_cast<size_t>(team.nodes()));
  int64_t total = 0;
  for (const NodeSlice& slice : slices) {
    total += slice.bytes;
    for (int64_t begin = 0; begin < slice.bytes; begin += kPieceBytes)
      // The bytes stay as they are: only the page tables change.
      pieces[static_cast<size_t>(slice.node)].push_back(
          {const_cast<std::byte*>(slice.data) + begin, std::min(kPieceBytes, slice.bytes - begin)});
  }
  std::atomic<int64_t> done = 0;
  std::atomic<bool> stopped = false;
  team.run([&](Worker& worker) {
    const std::vector<Piece>& own = pieces[static_cast<size_t>(worker.node)];
    const Range share = worker.share_in_node(static_cast<int64_t>(own.size()));
    for (int64_t i = share.begin; i < share.end; ++i) {
      if (watch.cancel != nullptr && watch.cancel->load(std::memory_order_relaxed)) stopped = true;
      if (stopped.load(std::memory_order_relaxed)) return;
      take(own[static_cast<size_t>(i)]);
      done.fetch_add(own[static_cast<size_t>(i)].bytes, std::memory_order_relaxed);
      if (worker.rank == 0 && watch.progress) watch.progress(done.load(), total);
    }
  });
  if (stopped) return false;
  if (watch.progress) watch.progress(total, total);
  return true;
}

}  // namespace cpuinfer::numa
