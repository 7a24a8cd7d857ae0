#include "base/log.h"

#include <atomic>
#include <cstdio>
#include <mutex>

namespace cpuinfer {
namespace {

// The log sink is the one global of the project.
std::atomic<LogLevel> g_level{LogLevel::kInfo};
std::mutex g_mutex;
std::function<void(LogLevel, std::string_view)> g_sink;

const char* prefix(LogLevel level) {
  switch (level) {
    case LogLevel::kWarn: return "warning: ";
    case LogLevel::kError: return "cpuinfer: ";
    default: return "";
  }
}

}  // namespace

void set_log_level(LogLevel level) { g_level = level; }

void set_log_sink(std::function<void(LogLevel, std::string_view)> sink) {
  const std::scoped_lock lock(g_mutex);
  g_sink = std::move(sink);
}

void log_line(LogLevel level, std::string_view line) {
  if (level < g_level.load()) return;
  const std::scoped_lock lock(g_mutex);
  if (g_sink) {
    g_sink(level, line);
    return;
  }
  std::fprintf(stderr, "%s%.*s\n", prefix(level), static_cast<int>(line.size()), line.data());
}

}  // namespace cpuinfer
