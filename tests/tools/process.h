// Runs the built program as its users do: arguments, pipes, signals, a terminal.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace cpuinfer::tools {

using Arguments = std::vector<std::string>;

/// How a process ended and what it wrote. exit_code: 128 + signal if a signal killed it, as shells say; -1 if it had to
/// be killed after the time limit.
struct Outcome {
  int exit_code = -1;
  bool killed_by_signal = false;
  std::string out, err;
};

struct ProcessOptions {
  std::string input;                                             ///< what stdin gives
  bool keep_stdin_open = false;                                  ///< no end of file after `input`
  std::vector<std::pair<std::string, std::string>> environment;  ///< on top of a small fixed one
  std::string stdout_path;                                       ///< a file instead of a pipe
  bool close_stdout = false;                                     ///< start with stdout closed
  int64_t limit_ms = 120'000;
  std::vector<std::pair<int, int64_t>> resource_limits;  ///< RLIMIT_AS, ... and bytes, from its start
  std::string control_group;                             ///< a directory of the group to start in; empty: this one
};

/// One run of cpuinfer.
class Process {
 public:
  explicit Process(const Arguments& arguments, const ProcessOptions& options = {});
  ~Process();
  Process(const Process&) = delete;

  /// Reads until `condition(out, err)` holds; false if the process ended or the time limit passed first.
  bool read_until(const std::function<bool(const std::string& out, const std::string& err)>& condition);
  void signal(int number);
  void close_stdout();
  /// Reads everything and waits for the end.
  Outcome finish();

 private:
  bool pump(int timeout_ms);

  pid_t pid_ = -1;
  int in_ = -1, out_ = -1, err_ = -1;
  std::string input_;
  bool keep_stdin_open_;
  Outcome outcome_;
  std::chrono::steady_clock::time_point deadline_;
};

/// Runs to the end.
Outcome run_cpuinfer(const Arguments& arguments, const ProcessOptions& options = {});
/// The same with text on stdin.
Outcome pipe_cpuinfer(const std::string& input, const Arguments& arguments);

/// cpuinfer on a terminal of its own (stdin, stdout and stderr).
class Terminal {
 public:
  explicit Terminal(const Arguments& arguments);
  ~Terminal();
  Terminal(const Terminal&) = delete;

  void type(std::string_view text);
  /// Waits until `text` appears after what earlier calls have found. False after the time limit or at the end.
  bool expect(std::string_view text);
  /// Waits until `bytes` more than what earlier calls have found are shown.
  bool expect_more(size_t bytes);
  /// Everything shown so far.
  const std::string& screen() const { return screen_; }
  /// Waits for the end; as Outcome::exit_code.
  int finish();

 private:
  bool pump();

  pid_t pid_ = -1;
  int terminal_ = -1;
  std::string screen_;
  size_t seen_ = 0;
  bool ended_ = false;
  std::chrono::steady_clock::time_point deadline_;
};

/// A directory that disappears with the test program.
const std::filesystem::path& scratch_directory();
std::string read_file(const std::filesystem::path& path);
void write_file(const std::filesystem::path& path, std::string_view text);

/// The tiny checkpoint of `cpuinfer synth tiny` with the tokenizer of tests/data; made once.
const std::string& tiny_model();
/// A directory of tests/data/goldens.
std::string golden_model(const std::string& name);

}  // namespace cpuinfer::tools
