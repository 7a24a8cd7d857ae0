#include "tools/signals.h"

#include <signal.h>
#include <unistd.h>

#include "tools/exit_codes.h"

namespace cpuinfer::tools {
namespace {

// Signal handlers reach nothing but globals.
std::atomic<bool> g_cancel{false};
std::atomic<int> g_signal{0};
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

void on_signal(int signal) {
  if (g_cancel.load()) _exit(kExitSignalBase + signal);
  raise_cancel(signal);
}

}  // namespace

void install_signal_handlers() {
  struct sigaction action {};
  sigemptyset(&action.sa_mask);
  action.sa_handler = on_signal;  // no SA_RESTART: reads and writes shall notice
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
}

const std::atomic<bool>& cancel_flag() { return g_cancel; }

int pending_signal() { return g_signal.load(); }

void raise_cancel(int signal) {
  g_signal.store(signal);
  g_cancel.store(true);
}

void clear_cancel() {
  g_cancel.store(false);
  g_signal.store(0);
}

}  // namespace cpuinfer::tools
