// Levelled messages for people, to stderr through one sink. Results never go through here.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "base/format.h"

namespace cpuinfer {

enum class LogLevel { kDebug, kInfo, kWarn, kError };

/// Thread-safe. The sink gets one line without its newline.
void log_line(LogLevel level, std::string_view line);
/// Messages below `level` are dropped. Default: kInfo.
void set_log_level(LogLevel level);
/// Replaces the sink (default: stderr). Tests and the progress bar use it. Not to be called while others log.
void set_log_sink(std::function<void(LogLevel, std::string_view)> sink);

template <typename... Args>
void log_debug(fmt::format_string<Args...> text, Args&&... args) {
  log_line(LogLevel::kDebug, fmt::format(text, std::forward<Args>(args)...));
}
template <typename... Args>
void log_info(fmt::format_string<Args...> text, Args&&... args) {
  log_line(LogLevel::kInfo, fmt::format(text, std::forward<Args>(args)...));
}
template <typename... Args>
void log_warn(fmt::format_string<Args...> text, Args&&... args) {
  log_line(LogLevel::kWarn, fmt::format(text, std::forward<Args>(args)...));
}
template <typename... Args>
void log_error(fmt::format_string<Args...> text, Args&&... args) {
  log_line(LogLevel::kError, fmt::format(text, std::forward<Args>(args)...));
}

}  // namespace cpuinfer
