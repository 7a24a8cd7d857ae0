// What people see on stderr while they wait: lines of facts, progress bars, colours.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "tools/options.h"

namespace cpuinfer::tools {

class Progress;

/// stderr of one command. Takes over the log sink for its life, so that messages and bars do not mix. One per process.
class Console {
 public:
  explicit Console(const ConsoleOptions& options);
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  /// A line of information; nothing with --quiet.
  void line(std::string_view text);
  /// The same, dim where colours are on.
  void note(std::string_view text);
  /// Text as it is, without newline: prompts of the chat.
  void put(std::string_view text);

  /// Whether escape sequences may go to stdout (thoughts are shown dim there).
  bool color_stdout() const { return color_stdout_; }

 private:
  friend class Progress;
  void write(std::string_view text);
  void draw_bar(const std::string& text);
  void clear_bar();

  std::recursive_mutex mutex_;  // messages come from any thread
  bool quiet_, color_stderr_, color_stdout_;
  ProgressMode mode_;  // never kAuto
  bool bar_visible_ = false;
};

/// What is counted; kShare: only the share is shown.
enum class ProgressUnit { kBytes, kTokens, kShare };

/// One thing that takes its time: amount done, share, speed, time left. Used by one thread.
class Progress {
 public:
  Progress(Console& console, std::string label, ProgressUnit unit);
  /// Clears the bar.
  ~Progress();

  void update(int64_t done, int64_t total);

 private:
  using Clock = std::chrono::steady_clock;
  std::string text(int64_t done, int64_t total, double seconds, bool bar) const;

  Console& console_;
  std::string label_;
  ProgressUnit unit_;
  Clock::time_point started_, shown_;
};

/// "48 s", "12 min", "3.2 h".
std::string format_seconds(double seconds);

}  // namespace cpuinfer::tools
