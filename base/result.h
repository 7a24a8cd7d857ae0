// Errors as values: Result<T> for everything the world can cause (files, requests, memory).
#pragma once

#include <expected>
#include <string>
#include <utility>

namespace cpuinfer {

/// What kind of failure it is. tools/ maps each kind to a process exit code (docs/cli.md).
enum class ErrorCode {
  kUsage,        ///< the caller asked for something that makes no sense: flags, ranges      (exit 2)
  kNotFound,     ///< a file or model that is not there or cannot be read                    (exit 66)
  kBadInput,     ///< a file or text that is there but is not what it should be              (exit 78)
  kUnsupported,  ///< well-formed, but cpuinfer does not do it                               (exit 78)
  kDoesNotFit,   ///< the plan needs more memory than there is                               (exit 78)
  kBusy,         ///< others have what is needed: it would work later                        (exit 75)
  kPermission,   ///< the system says no                                                     (exit 77)
  kInterrupted,  ///< stopped on purpose by a signal or the caller                           (exit 130/143)
  kRuntime,      ///< an operation that should have worked failed (I/O error, disk full)     (exit 1)
  kInternal,     ///< a bug in cpuinfer                                                      (exit 70)
};

/// A failure that a user can read. `message` says what, where, expected against found, and what to do.
struct Error {
  ErrorCode code = ErrorCode::kRuntime;
  std::string message;
};

template <typename T>
using Result = std::expected<T, Error>;

/// `return fail(ErrorCode::kBadInput, "...")` in a function that returns any Result<T>.
inline std::unexpected<Error> fail(ErrorCode code, std::string message) {
  return std::unexpected<Error>(Error{code, std::move(message)});
}

}  // namespace cpuinfer

#define CPUINFER_CONCAT_INNER(a, b) a##b
#define CPUINFER_CONCAT(a, b) CPUINFER_CONCAT_INNER(a, b)

/// `TRY(expr);` returns the error of a Result<void> to the caller.
#define TRY(expr)                                                                \
  do {                                                                           \
    if (auto try_result_ = (expr); !try_result_.has_value())                     \
      return std::unexpected<::cpuinfer::Error>(std::move(try_result_).error()); \
  } while (false)

/// `TRY_ASSIGN(auto x, expr);` unwraps a Result<T> into x, or returns its error to the caller.
#define TRY_ASSIGN(declaration, expr) TRY_ASSIGN_INNER(CPUINFER_CONCAT(try_result_, __LINE__), declaration, expr)
#define TRY_ASSIGN_INNER(result, declaration, expr)                                              \
  auto result = (expr);                                                                          \
  if (!result.has_value()) return std::unexpected<::cpuinfer::Error>(std::move(result).error()); \
  declaration = std::move(result).value()
