// The one place that maps failures to process exit codes (docs/cli.md has the table for users).
#pragma once

#include "base/result.h"

namespace cpuinfer::tools {

inline constexpr int kExitOk = 0;
inline constexpr int kExitRuntime = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitNotFound = 66;
inline constexpr int kExitInternal = 70;
/// Later it works: the KV store has what was done and the same command goes on there, or others have what is needed.
inline constexpr int kExitTryAgain = 75;
inline constexpr int kExitPermission = 77;
inline constexpr int kExitConfig = 78;
/// As a shell reports a process that a signal ended: 130 for SIGINT, 143 for SIGTERM, 141 for SIGPIPE.
inline constexpr int kExitSignalBase = 128;

/// `signal`: what interrupted the process, for kInterrupted.
constexpr int exit_code(ErrorCode code, int signal) {
  switch (code) {
    case ErrorCode::kUsage: return kExitUsage;
    case ErrorCode::kNotFound: return kExitNotFound;
    case ErrorCode::kBadInput:
    case ErrorCode::kUnsupported:
    case ErrorCode::kDoesNotFit: return kExitConfig;
    case ErrorCode::kBusy: return kExitTryAgain;
    case ErrorCode::kPermission: return kExitPermission;
    case ErrorCode::kInterrupted: return kExitSignalBase + signal;
    case ErrorCode::kRuntime: return kExitRuntime;
    case ErrorCode::kInternal: return kExitInternal;
  }
  return kExitInternal;
}

}  // namespace cpuinfer::tools
