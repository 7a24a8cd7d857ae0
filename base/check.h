// ENSURE (CHECK is taken by the test library): programmer errors only, never reachable by user input.
// The message states the broken promise.
#pragma once

namespace cpuinfer {
/// Prints the broken promise to stderr and aborts.
[[noreturn]] void check_failed(const char* file, int line, const char* condition, const char* promise);
}  // namespace cpuinfer

#define ENSURE(condition, promise)                                       \
  do {                                                                   \
    if (!(condition)) [[unlikely]]                                       \
      ::cpuinfer::check_failed(__FILE__, __LINE__, #condition, promise); \
  } while (false)
