// What people see on stderr while they wait: lines of facts, progress bars, colours.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

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

/// How long work takes whose later parts take longer, as tokens of a prompt do: time = a n + b n^2 for n of it, with a
/// and b from what was seen at about the half of what is done, and now. Pure.
class Pace {
 public:
  /// `done` and `seconds` since the beginning; both grow.
  void add(double done, double seconds);
  /// Until `total` is done. Infinite before the first add().
  double seconds_left(double total) const;

 private:
  struct Point {
    double done = 0, seconds = 0;
  };
  std::vector<Point> points_;  // at most kMostPoints, evenly thinned
};

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
  Pace pace_;
};

/// "48 s", "12 min", "3.2 h".
std::string format_seconds(double seconds);

}  // namespace cpuinfer::tools
