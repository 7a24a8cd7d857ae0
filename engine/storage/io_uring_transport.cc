// io_uring (Axboe, "Efficient IO with io_uring", 2019) by liburing: requests and completions in rings shared with the
// kernel.
#include <liburing.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

#include "base/check.h"
#include "base/format.h"
#include "engine/storage/io_backend.h"

namespace cpuinfer::storage {
namespace {

class UringTransport final : public IoTransport {
 public:
  /// 0, or the error's number.
  int open(int depth) {
    const int error = -io_uring_queue_init(static_cast<unsigned>(depth), &ring_, 0);
    open_ = error == 0;
    return error;
  }
  ~UringTransport() override {
    if (open_) io_uring_queue_exit(&ring_);
  }

  int start(int slot, const IoOperation& operation) override {
    io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
    if (entry == nullptr) return EBUSY;
    const auto offset = static_cast<uint64_t>(operation.offset);
    const auto count = static_cast<unsigned>(operation.count);
    if (operation.write)
      io_uring_prep_writev(entry, operation.descriptor, operation.parts, count, offset);
    else
      io_uring_prep_readv(entry, operation.descriptor, operation.parts, count, offset);
    io_uring_sqe_set_data64(entry, static_cast<uint64_t>(slot));
    for (;;) {
      const int submitted = io_uring_submit(&ring_);
      if (submitted >= 0) return 0;
      // The kernel is short of memory for the request; those under way will give some back.
      if (submitted != -EINTR && submitted != -EAGAIN && submitted != -EBUSY) return -submitted;
    }
  }

  std::optional<IoOutcome> next(bool block) override {
    io_uring_cqe* entry = nullptr;
    for (;;) {
      const int error = block ? io_uring_wait_cqe(&ring_, &entry) : io_uring_peek_cqe(&ring_, &entry);
      if (error == 0) break;
      if (!block && error == -EAGAIN) return std::nullopt;
      ENSURE(error == -EINTR || error == -EAGAIN, "an open ring can be waited for");
    }
    const IoOutcome outcome = {static_cast<int>(io_uring_cqe_get_data64(entry)), entry->res};
    io_uring_cqe_seen(&ring_, entry);
    return outcome;
  }

 private:
  io_uring ring_{};
  bool open_ = false;
};

}  // namespace

Result<std::unique_ptr<IoTransport>> create_uring_transport(int depth) {
  auto transport = std::make_unique<UringTransport>();
  if (const int error = transport->open(depth); error != 0)
    return fail(ErrorCode::kRuntime,
                format("io_uring for {} requests cannot be had: {}", depth, std::generic_category().message(error)));
  return transport;
}

}  // namespace cpuinfer::storage
