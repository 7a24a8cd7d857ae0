// What asks the process to end early: SIGINT, SIGTERM, and a reader of stdout that has gone.
#pragma once

#include <atomic>

#include "base/result.h"

namespace cpuinfer::tools {

/// Installs the handlers: the first SIGINT or SIGTERM sets cancel_flag(), a second one while it is set ends the process
/// at once. SIGPIPE is ignored: writing says EPIPE. Call first.
void install_signal_handlers();

/// Waits until `descriptor` can be read without blocking, or is at its end. False if the process was asked to stop,
/// before or meanwhile.
bool wait_readable(int descriptor);

/// True once the process was asked to stop what it is doing.
const std::atomic<bool>& cancel_flag();

/// kInterrupted if the process was asked to stop: for after work that does not look at the flag itself.
Result<void> check_cancel();

/// The signal that set the flag, or 0.
int pending_signal();

/// Sets the flag as if `signal` had come.
void raise_cancel(int signal);

/// Forgets an interruption that has been dealt with: the chat goes on.
void clear_cancel();

}  // namespace cpuinfer::tools
