#include "tools/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <limits>
#include <string>
#include <utility>

#include "base/format.h"
#include "base/log.h"
#include "base/types.h"

namespace cpuinfer::tools {
namespace {

constexpr auto kBarDelay = std::chrono::milliseconds(300);  // what is faster needs no bar
constexpr auto kBarInterval = std::chrono::milliseconds(100);
constexpr auto kPlainInterval = std::chrono::seconds(10);

}  // namespace

Console::Console(const ConsoleOptions& options)
    : quiet_(options.quiet),
      color_stderr_(options.color && ::isatty(STDERR_FILENO) == 1),
      color_stdout_(options.color && ::isatty(STDOUT_FILENO) == 1),
      mode_(options.progress) {
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  if (mode_ == ProgressMode::kAuto) mode_ = terminal ? ProgressMode::kBar : ProgressMode::kPlain;
  // A bar in a file would be one endless line.
  if (mode_ == ProgressMode::kBar && !terminal) mode_ = ProgressMode::kPlain;
  if (quiet_) mode_ = ProgressMode::kNone;
  set_log_level(options.verbose ? LogLevel::kDebug : quiet_ ? LogLevel::kWarn : LogLevel::kInfo);
  set_log_sink([this](LogLevel level, std::string_view text) {
    const char* prefix = level == LogLevel::kWarn ? "warning: " : level == LogLevel::kError ? "cpuinfer: " : "";
    write(format("{}{}\n", prefix, text));
  });
}

Console::~Console() {
  clear_bar();
  set_log_sink(nullptr);
}

void Console::line(std::string_view text) {
  if (!quiet_) write(format("{}\n", text));
}

void Console::note(std::string_view text) {
  if (quiet_) return;
  write(color_stderr_ ? format("\033[2m{}\033[0m\n", text) : format("{}\n", text));
}

void Console::put(std::string_view text) { write(text); }

void Console::write(std::string_view text) {
  const std::scoped_lock lock(mutex_);
  clear_bar();
  while (!text.empty()) {
    const ssize_t done = ::write(STDERR_FILENO, text.data(), text.size());
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return;  // nowhere left to complain to
    text.remove_prefix(static_cast<size_t>(done));
  }
}

void Console::draw_bar(const std::string& text) {
  const std::scoped_lock lock(mutex_);
  write(text);  // begins with a carriage return
  bar_visible_ = true;
}

void Console::clear_bar() {
  const std::scoped_lock lock(mutex_);
  if (!std::exchange(bar_visible_, false)) return;
  write("\r\033[K");
}

Progress::Progress(Console& console, std::string label, ProgressUnit unit)
    : console_(console), label_(std::move(label)), unit_(unit), started_(Clock::now()), shown_(started_) {}

Progress::~Progress() { console_.clear_bar(); }

void Pace::add(double done, double seconds) {
  constexpr size_t kMostPoints = 64;
  if (done <= 0 || (!points_.empty() && done <= points_.back().done)) return;
  if (points_.size() == kMostPoints) {
    for (size_t i = 0; i < kMostPoints / 2; ++i) points_[i] = points_[2 * i + 1];
    points_.resize(kMostPoints / 2);
  }
  points_.push_back({done, seconds});
}

double Pace::seconds_left(double total) const {
  if (points_.empty()) return std::numeric_limits<double>::infinity();
  const Point& now = points_.back();
  const auto half = std::lower_bound(points_.begin(), points_.end() - 1, now.done / 2,
                                     [](const Point& point, double done) { return point.done < done; });
  const double rate = now.seconds / now.done;
  double growth = 0;  // b
  if (half->done < now.done) growth = std::max(0.0, (rate - half->seconds / half->done) / (now.done - half->done));
  growth = std::min(growth, rate / now.done);  // a is not below 0
  return (rate - growth * now.done) * total + growth * total * total - now.seconds;
}

void Progress::update(int64_t done, int64_t total) {
  if (console_.mode_ == ProgressMode::kNone || total <= 0) return;
  const auto now = Clock::now();
  pace_.add(static_cast<double>(done), std::chrono::duration<double>(now - started_).count());
  const bool bar = console_.mode_ == ProgressMode::kBar;
  if (bar ? now - started_ < kBarDelay || now - shown_ < kBarInterval : now - shown_ < kPlainInterval) return;
  shown_ = now;
  const std::string shown = text(done, total, std::chrono::duration<double>(now - started_).count(), bar);
  if (bar)
    console_.draw_bar("\r" + shown + "\033[K");
  else
    console_.line(shown);
}

std::string Progress::text(int64_t done, int64_t total, double seconds, bool bar) const {
  const double share = static_cast<double>(done) / static_cast<double>(total);
  const double speed = static_cast<double>(done) / std::max(seconds, 1e-9);
  const double left = unit_ == ProgressUnit::kTokens ? pace_.seconds_left(static_cast<double>(total))
                                                     : static_cast<double>(total - done) / std::max(speed, 1e-9);
  std::string picture;
  if (bar) {
    constexpr int kWidth = 24;
    const int full = static_cast<int>(share * kWidth);
    picture = format("[{:#<{}}{:.<{}}] ", "", full, "", kWidth - full);
  }
  const std::string amounts =
      unit_ == ProgressUnit::kBytes    ? format("{} of {}, {}/s, ", format_bytes(done), format_bytes(total),
                                                format_bytes(static_cast<int64_t>(speed)))
      : unit_ == ProgressUnit::kTokens ? format("{} of {} tokens, {:.1f} tokens/s, ", done, total, speed)
                                       : std::string();
  return format("{:<9} {}{:3.0f} %, {}{} left", label_, picture, 100 * share, amounts, format_seconds(left));
}

std::string format_seconds(double seconds) {
  if (seconds < 120) return format("{:.0f} s", seconds);
  if (seconds < 7200) return format("{:.0f} min", seconds / 60);
  return format("{:.1f} h", seconds / 3600);
}

}  // namespace cpuinfer::tools
