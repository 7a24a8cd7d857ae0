// What IoQueue is built on: single system calls carried out in the background. Internal to engine/storage.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "base/result.h"

namespace cpuinfer::storage {

/// One preadv or pwritev.
struct IoOperation {
  int descriptor = -1;
  bool write = false;
  int64_t offset = 0;
  const iovec* parts = nullptr;
  int count = 0;
};

struct IoOutcome {
  int slot = 0;
  int64_t result = 0;  ///< bytes, or minus the error's number
};

class IoTransport {
 public:
  virtual ~IoTransport() = default;
  /// Starts an operation under a number below the depth that is not in use. 0, or the error's number.
  virtual int start(int slot, const IoOperation& operation) = 0;
  /// An operation that has ended; `block`: waits for one. REQUIRES: one is under way.
  virtual std::optional<IoOutcome> next(bool block) = 0;
};

/// Errors: kRuntime with the system's reason.
Result<std::unique_ptr<IoTransport>> create_uring_transport(int depth);
Result<std::unique_ptr<IoTransport>> create_thread_transport(int depth);

}  // namespace cpuinfer::storage
