// Reads and writes of files with several in flight at a time.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"

namespace cpuinfer::storage {

enum class IoBackend {
  kAuto,     ///< io_uring, or threads where the system refuses it (containers often do)
  kUring,    ///< the kernel's queue: no thread of our own
  kThreads,  ///< a thread for each request in flight, at most kMostIoThreads
};

inline constexpr int kMostIoThreads = 16;

/// One transfer between a file and memory. The memory, and what `parts` views, stays until it is complete.
struct IoRequest {
  int descriptor = -1;
  bool write = false;
  int64_t offset = 0;
  std::byte* data = nullptr;  ///< [bytes]; or, in `parts`, several pieces that are one piece of the file
  int64_t bytes = 0;
  std::span<const iovec> parts = {};  ///< at most kMostIoParts; none of them empty
  uint64_t tag = 0;                   ///< comes back with the completion
};

inline constexpr int kMostIoParts = 1024;

struct IoCompletion {
  uint64_t tag = 0;
  /// Errors: kRuntime with the offset, "cannot read 4096 bytes at byte 8192: ..."; the caller knows the file's name.
  Result<void> result;
};

/// How requests are carried out; io_backend.h.
class IoTransport;

/// Transfers files asynchronously: submit() returns at once, wait() gives what is complete, in any order. A transfer
/// that stops short is continued; one that meets the end of the file is an error. Move-only; used by one thread at a
/// time. Nothing is allocated between create() and destruction, but for the text of an error.
class IoQueue {
 public:
  /// Room for `depth` requests in flight. Errors: kUsage (depth < 1), kRuntime (the system gives no queue, or no
  /// thread; kAuto tries both).
  static Result<IoQueue> create(int depth, IoBackend backend = IoBackend::kAuto);
  /// On a transport of the caller's: for tests, of what disks seldom do.
  IoQueue(std::unique_ptr<IoTransport> transport, IoBackend backend, int depth);

  IoQueue(IoQueue&&) noexcept;
  /// REQUIRES: nothing is in flight in the queue that is replaced.
  IoQueue& operator=(IoQueue&&) noexcept;
  /// Waits for all that is in flight: their memory may go afterwards.
  ~IoQueue();

  int depth() const { return static_cast<int>(slots_.size()); }
  /// kUring or kThreads.
  IoBackend backend() const { return backend_; }
  int in_flight() const { return in_flight_; }

  /// REQUIRES: in_flight() < depth(); at least one byte.
  void submit(const IoRequest& request);
  /// The next completion; waits for one. REQUIRES: in_flight() > 0.
  IoCompletion wait();
  /// The next completion, if there is one already.
  std::optional<IoCompletion> poll();

 private:
  struct Slot {
    IoRequest request;
    iovec whole{};    // request.data as a part
    iovec rest{};     // what is left of a part that was transferred in part
    size_t part = 0;  // the first that is not complete
    int64_t offset = 0, left_bytes = 0;
    int refusals = 0;  // in a row
  };

  void start(int slot);
  std::span<const iovec> parts_of(const Slot& slot) const;
  /// Takes note of a transfer of `result` bytes, or of the error -result. nullopt: the rest has been started.
  std::optional<IoCompletion> advance(int slot, int64_t result);

  std::unique_ptr<IoTransport> transport_;
  IoBackend backend_;
  std::vector<Slot> slots_;
  std::vector<int> free_;
  int in_flight_ = 0;
};

}  // namespace cpuinfer::storage
