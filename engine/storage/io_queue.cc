#include "engine/storage/io_queue.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/check.h"
#include "base/format.h"
#include "base/log.h"
#include "engine/storage/io_backend.h"
#include "engine/storage/transfer_error.h"

namespace cpuinfer::storage {

Result<IoQueue> IoQueue::create(int depth, IoBackend backend) {
  constexpr int kMostDepth = 4096;
  if (depth < 1 || depth > kMostDepth)
    return fail(ErrorCode::kUsage, format("a queue of {} requests; it must be between 1 and {}", depth, kMostDepth));
  if (backend != IoBackend::kThreads) {
    auto uring = create_uring_transport(depth);
    if (uring) return IoQueue(std::move(*uring), IoBackend::kUring, depth);
    if (backend == IoBackend::kUring) return std::unexpected(std::move(uring).error());
    log_debug("reading by threads: {}", uring.error().message);
  }
  TRY_ASSIGN(std::unique_ptr<IoTransport> threads, create_thread_transport(depth));
  return IoQueue(std::move(threads), IoBackend::kThreads, depth);
}

IoQueue::IoQueue(std::unique_ptr<IoTransport> transport, IoBackend backend, int depth)
    : transport_(std::move(transport)), backend_(backend), slots_(static_cast<size_t>(depth)) {
  free_.reserve(slots_.size());
  for (int slot = depth - 1; slot >= 0; --slot) free_.push_back(slot);
}

IoQueue::IoQueue(IoQueue&& other) noexcept
    : transport_(std::move(other.transport_)),
      backend_(other.backend_),
      slots_(std::move(other.slots_)),
      free_(std::move(other.free_)),
      in_flight_(std::exchange(other.in_flight_, 0)) {}

IoQueue& IoQueue::operator=(IoQueue&& other) noexcept {
  ENSURE(in_flight_ == 0, "a queue is replaced when nothing is in flight");
  std::swap(transport_, other.transport_);
  std::swap(backend_, other.backend_);
  std::swap(slots_, other.slots_);
  std::swap(free_, other.free_);
  std::swap(in_flight_, other.in_flight_);
  return *this;
}

IoQueue::~IoQueue() {
  while (in_flight_ > 0) wait();
}

std::span<const iovec> IoQueue::parts_of(const Slot& slot) const {
  return slot.request.parts.empty() ? std::span(&slot.whole, 1) : slot.request.parts;
}

void IoQueue::submit(const IoRequest& request) {
  ENSURE(!free_.empty(), "requests in flight are at most depth()");
  ENSURE(request.parts.size() <= kMostIoParts, "a request has at most kMostIoParts parts");
  const int number = free_.back();
  free_.pop_back();
  ++in_flight_;
  Slot& slot = slots_[static_cast<size_t>(number)];
  slot.request = request;
  slot.whole = {request.data, static_cast<size_t>(request.bytes)};
  slot.rest = {};
  slot.part = 0;
  slot.offset = request.offset;
  slot.left_bytes = 0;
  for (const iovec& part : parts_of(slot)) slot.left_bytes += static_cast<int64_t>(part.iov_len);
  ENSURE(slot.left_bytes > 0, "a request has at least one byte");
  start(number);
}

void IoQueue::start(int number) {
  Slot& slot = slots_[static_cast<size_t>(number)];
  const std::span<const iovec> parts = parts_of(slot).subspan(slot.part);
  // A part that has been begun comes alone, since the caller's list is not ours to change.
  const bool begun = slot.rest.iov_len > 0;
  const int error = transport_->start(number, {.descriptor = slot.request.descriptor,
                                               .write = slot.request.write,
                                               .offset = slot.offset,
                                               .parts = begun ? &slot.rest : parts.data(),
                                               .count = begun ? 1 : static_cast<int>(parts.size())});
  ENSURE(error == 0, "the transport has room for depth() operations");
}

std::optional<IoCompletion> IoQueue::advance(int number, int64_t result) {
  Slot& slot = slots_[static_cast<size_t>(number)];
  const auto complete = [&](Result<void> outcome) {
    free_.push_back(number);
    --in_flight_;
    return IoCompletion{slot.request.tag, std::move(outcome)};
  };
  // A system that always says so would be asked for ever.
  constexpr int kMostRefusals = 1000;
  if ((result == -EINTR || result == -EAGAIN) && ++slot.refusals < kMostRefusals) {
    start(number);
    return std::nullopt;
  }
  if (result <= 0)
    return complete(fail(ErrorCode::kRuntime, transfer_error(slot.request.descriptor, slot.request.write, slot.offset,
                                                             slot.left_bytes, static_cast<int>(-result))));
  slot.refusals = 0;
  slot.offset += result;
  slot.left_bytes -= result;
  if (slot.left_bytes <= 0) return complete({});
  const std::span<const iovec> parts = parts_of(slot);
  while (result > 0) {
    const iovec part = slot.rest.iov_len > 0 ? slot.rest : parts[slot.part];
    const int64_t taken = std::min(result, static_cast<int64_t>(part.iov_len));
    slot.rest = {static_cast<std::byte*>(part.iov_base) + taken, part.iov_len - static_cast<size_t>(taken)};
    if (slot.rest.iov_len == 0) ++slot.part;
    result -= taken;
  }
  start(number);
  return std::nullopt;
}

IoCompletion IoQueue::wait() {
  ENSURE(in_flight_ > 0, "something is in flight");
  for (;;) {
    const std::optional<IoOutcome> outcome = transport_->next(true);
    if (auto completion = advance(outcome->slot, outcome->result)) return std::move(*completion);
  }
}

std::optional<IoCompletion> IoQueue::poll() {
  while (in_flight_ > 0) {
    const std::optional<IoOutcome> outcome = transport_->next(false);
    if (!outcome) return std::nullopt;
    if (auto completion = advance(outcome->slot, outcome->result)) return completion;
  }
  return std::nullopt;
}

}  // namespace cpuinfer::storage
