#include "tools/output.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

#include "base/format.h"
#include "base/types.h"
#include "tools/signals.h"

namespace cpuinfer::tools {

void claim_standard_streams() {
  // Opened the wrong way round, so that using such a stream fails as if it were closed.
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(stream, F_GETFD) >= 0) continue;
    const int opened = ::open("/dev/null", stream == STDIN_FILENO ? O_WRONLY : O_RDONLY);
    if (opened >= 0 && opened != stream) ::close(opened);
  }
}

Result<void> write_stdout(std::string_view text) {
  while (!text.empty()) {
    const ssize_t done = ::write(STDOUT_FILENO, text.data(), text.size());
    if (done >= 0) {
      text.remove_prefix(static_cast<size_t>(done));
      continue;
    }
    if (errno == EINTR) {
      if (cancel_flag().load()) return fail(ErrorCode::kInterrupted, "interrupted while writing the answer");
      continue;
    }
    if (errno == EPIPE) {
      raise_cancel(SIGPIPE);
      return fail(ErrorCode::kInterrupted, "nobody reads stdout any more");
    }
    return fail(ErrorCode::kRuntime, format("cannot write to stdout: {}", std::generic_category().message(errno)));
  }
  return {};
}

Result<std::string> read_stdin(int64_t max_bytes) {
  std::string text;
  char piece[64 * 1024];
  for (;;) {
    if (!wait_readable(STDIN_FILENO)) return fail(ErrorCode::kInterrupted, "interrupted while reading stdin");
    const ssize_t got = ::read(STDIN_FILENO, piece, sizeof(piece));
    if (got == 0) return text;
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      return fail(ErrorCode::kRuntime, format("cannot read stdin: {}", std::generic_category().message(errno)));
    text.append(piece, static_cast<size_t>(got));
    if (static_cast<int64_t>(text.size()) > max_bytes)
      return fail(ErrorCode::kUsage,
                  format("more than {} on stdin; that is more text than any context holds", format_bytes(max_bytes)));
  }
}

}  // namespace cpuinfer::tools
