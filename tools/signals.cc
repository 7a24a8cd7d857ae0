#include "tools/signals.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>

#include "tools/exit_codes.h"

namespace cpuinfer::tools {
namespace {

// Signal handlers reach nothing but globals.
std::atomic<bool> g_cancel{false};
std::atomic<int> g_signal{0};
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

// A pipe that has a byte in it while the flag is set: waiting for input and for signals in one call, without the gap
// between looking at the flag and blocking, and whichever thread gets the signal.
int g_wake[2] = {-1, -1};

void on_signal(int signal) {
  if (g_cancel.load()) _exit(kExitSignalBase + signal);
  const int error = errno;
  raise_cancel(signal);
  errno = error;
}

}  // namespace

void install_signal_handlers() {
  if (::pipe2(g_wake, O_CLOEXEC | O_NONBLOCK) != 0) g_wake[0] = g_wake[1] = -1;  // then only EINTR wakes
  struct sigaction action{};
  sigemptyset(&action.sa_mask);
  action.sa_handler = on_signal;  // no SA_RESTART: reads and writes shall notice
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
}

const std::atomic<bool>& cancel_flag() { return g_cancel; }

Result<void> check_cancel() {
  if (!g_cancel.load()) return {};
  return fail(ErrorCode::kInterrupted, "interrupted");
}

int pending_signal() { return g_signal.load(); }

void raise_cancel(int signal) {
  g_signal.store(signal);
  g_cancel.store(true);
  if (g_wake[1] >= 0 && ::write(g_wake[1], "!", 1) < 0) return;  // full: it wakes already
}

void clear_cancel() {
  char bytes[64];
  while (g_wake[0] >= 0 && ::read(g_wake[0], bytes, sizeof(bytes)) > 0) {
  }
  g_cancel.store(false);
  g_signal.store(0);
}

bool wait_readable(int descriptor) {
  pollfd waits[2] = {{descriptor, POLLIN, 0}, {g_wake[0], POLLIN, 0}};
  for (;;) {
    if (g_cancel.load()) return false;
    // Errors of poll itself are left for read() to report.
    if (::poll(waits, 2, -1) >= 0 ? waits[0].revents != 0 && !g_cancel.load() : errno != EINTR) return true;
  }
}

}  // namespace cpuinfer::tools
