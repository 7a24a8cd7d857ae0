// Standard input and output as files of bytes: every failure is seen and said.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace cpuinfer::tools {

/// Opens /dev/null in place of standard streams that the caller has closed, so that no file of ours takes their
/// numbers. Call first.
void claim_standard_streams();

/// Writes all of it to stdout, unbuffered. A reader that has gone (EPIPE) raises SIGPIPE's cancellation and is
/// kInterrupted; so is a signal while blocked; other failures are kRuntime with the system's reason.
Result<void> write_stdout(std::string_view text);

/// Everything on stdin until its end. kUsage over `max_bytes`; kInterrupted; kRuntime.
Result<std::string> read_stdin(int64_t max_bytes);

}  // namespace cpuinfer::tools
