#include "tests/tools/process.h"

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace cpuinfer::tools {
namespace {

constexpr const char* kBinary = CPUINFER_BINARY;

// What the child needs before fork(): no allocation afterwards.
struct Image {
  explicit Image(const Arguments& arguments, const std::vector<std::pair<std::string, std::string>>& extra = {})
      : words_{kBinary}, variables_{"PATH=/usr/bin:/bin", "HOME=/nonexistent", "TERM=xterm", "LC_ALL=C.UTF-8"} {
    // Sanitizers and library paths of the tests hold for the program too.
    for (const char* name : {"ASAN_OPTIONS", "UBSAN_OPTIONS", "LSAN_OPTIONS", "LD_LIBRARY_PATH"})
      if (const char* value = std::getenv(name)) variables_.push_back(std::string(name) + "=" + value);
    words_.insert(words_.end(), arguments.begin(), arguments.end());
    for (const auto& [name, value] : extra) variables_.push_back(name + "=" + value);
    for (std::string& word : words_) argv_.push_back(word.data());
    for (std::string& variable : variables_) envp_.push_back(variable.data());
    argv_.push_back(nullptr);
    envp_.push_back(nullptr);
  }
  [[noreturn]] void exec() {
    ::execve(kBinary, argv_.data(), envp_.data());
    ::_exit(127);
  }

 private:
  std::vector<std::string> words_, variables_;
  std::vector<char*> argv_, envp_;
};

void check(bool good, const char* what) {
  if (!good) throw std::runtime_error(std::string(what) + " failed in the test itself");
}

int exit_code_of(int status) { return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status); }

int left_ms(std::chrono::steady_clock::time_point deadline) {
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
  return static_cast<int>(std::max<int64_t>(left, 0));
}

void close_once(int& descriptor) {
  if (descriptor >= 0) ::close(std::exchange(descriptor, -1));
}

// Appends what there is to read; closes at the end.
void drain(int& descriptor, std::string& text) {
  char piece[65536];
  const ssize_t got = ::read(descriptor, piece, sizeof(piece));
  if (got > 0)
    text.append(piece, static_cast<size_t>(got));
  else if (got == 0 || errno != EINTR)
    close_once(descriptor);
}

}  // namespace

Process::Process(const Arguments& arguments, const ProcessOptions& options)
    : input_(options.input),
      keep_stdin_open_(options.keep_stdin_open),
      deadline_(std::chrono::steady_clock::now() + std::chrono::milliseconds(options.limit_ms)) {
  ::signal(SIGPIPE, SIG_IGN);
  Image image(arguments, options.environment);
  const std::string group_file = options.control_group.empty() ? "" : options.control_group + "/cgroup.procs";
  int in[2], out[2], err[2];
  check(::pipe2(in, O_CLOEXEC) == 0 && ::pipe2(out, O_CLOEXEC) == 0 && ::pipe2(err, O_CLOEXEC) == 0, "pipe");
  pid_ = ::fork();
  check(pid_ >= 0, "fork");
  if (pid_ == 0) {
    ::signal(SIGPIPE, SIG_DFL);
    ::dup2(in[0], STDIN_FILENO);
    ::dup2(err[1], STDERR_FILENO);
    if (!options.stdout_path.empty())
      ::dup2(::open(options.stdout_path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666), STDOUT_FILENO);
    else if (options.close_stdout)
      ::close(STDOUT_FILENO);
    else
      ::dup2(out[1], STDOUT_FILENO);
    // "0" is the process that writes. What fails here is seen by the test: nothing is limited then.
    if (const int group = ::open(group_file.c_str(), O_WRONLY | O_CLOEXEC); group >= 0)
      if (::write(group, "0", 1) != 1) ::_exit(126);
    for (const auto& [resource, bytes] : options.resource_limits) {
      const rlimit limit = {static_cast<rlim_t>(bytes), static_cast<rlim_t>(bytes)};
      if (::setrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0) ::_exit(126);
    }
    image.exec();
  }
  ::close(in[0]);
  ::close(out[1]);
  ::close(err[1]);
  in_ = in[1];
  out_ = out[0];
  err_ = err[0];
  ::fcntl(in_, F_SETFL, O_NONBLOCK);
}

Process::~Process() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  close_once(in_);
  close_once(out_);
  close_once(err_);
}

// One round of reading and writing; false when there is nothing left to read or the time is over.
bool Process::pump(int timeout_ms) {
  if (input_.empty() && !keep_stdin_open_) close_once(in_);
  pollfd waits[3] = {{out_, POLLIN, 0}, {err_, POLLIN, 0}, {input_.empty() ? -1 : in_, POLLOUT, 0}};
  if (out_ < 0 && err_ < 0) return false;
  if (::poll(waits, 3, timeout_ms) <= 0) return errno == EINTR;
  if (waits[0].revents != 0) drain(out_, outcome_.out);
  if (waits[1].revents != 0) drain(err_, outcome_.err);
  if (waits[2].revents != 0) {
    const ssize_t done = ::write(in_, input_.data(), input_.size());
    if (done > 0)
      input_.erase(0, static_cast<size_t>(done));
    else if (errno != EAGAIN)
      input_.clear();
  }
  return true;
}

bool Process::read_until(const std::function<bool(const std::string&, const std::string&)>& condition) {
  while (!condition(outcome_.out, outcome_.err))
    if (!pump(left_ms(deadline_))) return false;
  return true;
}

void Process::signal(int number) { check(::kill(pid_, number) == 0, "kill"); }

void Process::close_stdout() { close_once(out_); }

Outcome Process::finish() {
  while (pump(left_ms(deadline_))) {
  }
  int status = 0;
  while (::waitpid(pid_, &status, WNOHANG) == 0) {
    if (left_ms(deadline_) == 0) return outcome_;  // the destructor kills it
    ::usleep(1000);
  }
  pid_ = -1;
  outcome_.exit_code = exit_code_of(status);
  outcome_.killed_by_signal = WIFSIGNALED(status);
  return outcome_;
}

Outcome run_cpuinfer(const Arguments& arguments, const ProcessOptions& options) {
  return Process(arguments, options).finish();
}

Outcome pipe_cpuinfer(const std::string& input, const Arguments& arguments) {
  ProcessOptions options;
  options.input = input;
  return run_cpuinfer(arguments, options);
}

Terminal::Terminal(const Arguments& arguments) : deadline_(std::chrono::steady_clock::now() + std::chrono::minutes(2)) {
  Image image(arguments);
  struct winsize size = {40, 120, 0, 0};
  pid_ = ::forkpty(&terminal_, nullptr, nullptr, &size);
  check(pid_ >= 0, "forkpty");
  if (pid_ == 0) image.exec();
}

Terminal::~Terminal() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  close_once(terminal_);
}

void Terminal::type(std::string_view text) {
  check(::write(terminal_, text.data(), text.size()) == static_cast<ssize_t>(text.size()), "typing");
}

bool Terminal::pump() {
  pollfd wait = {terminal_, POLLIN, 0};
  if (ended_ || ::poll(&wait, 1, left_ms(deadline_)) <= 0) return false;
  char piece[65536];
  const ssize_t got = ::read(terminal_, piece, sizeof(piece));
  if (got > 0) screen_.append(piece, static_cast<size_t>(got));
  ended_ = got <= 0;  // EIO once the other side is closed
  return !ended_;
}

bool Terminal::expect(std::string_view text) {
  for (;;) {
    if (const size_t at = screen_.find(text, seen_); at != std::string::npos) {
      seen_ = at + text.size();
      return true;
    }
    if (!pump()) return false;
  }
}

bool Terminal::expect_more(size_t bytes) {
  while (screen_.size() < seen_ + bytes)
    if (!pump()) return false;
  seen_ = screen_.size();
  return true;
}

int Terminal::finish() {
  while (pump()) {
  }
  int status = 0;
  while (::waitpid(pid_, &status, WNOHANG) == 0) {
    if (left_ms(deadline_) == 0) return -1;
    ::usleep(1000);
  }
  pid_ = -1;
  return exit_code_of(status);
}

const std::filesystem::path& scratch_directory() {
  struct Scratch {
    Scratch() {
      std::string pattern = (std::filesystem::temp_directory_path() / "cpuinfer-cli-XXXXXX").string();
      check(::mkdtemp(pattern.data()) != nullptr, "mkdtemp");
      path = pattern;
    }
    ~Scratch() {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
    }
    std::filesystem::path path;
  };
  static const Scratch scratch;
  return scratch.path;
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  check(file.good(), path.c_str());
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_file(const std::filesystem::path& path, std::string_view text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  check(file.good(), path.c_str());
}

const std::string& tiny_model() {
  static const std::string directory = [] {
    const std::string path = (scratch_directory() / "tiny").string();
    const Outcome made =
        run_cpuinfer({"synth", "tiny", "-o", path, "--tokenizer", CPUINFER_SOURCE_DIR "/tests/data/tokenizer/small"});
    if (made.exit_code != 0) throw std::runtime_error("synth tiny: " + made.err);
    return path;
  }();
  return directory;
}

std::string golden_model(const std::string& name) { return CPUINFER_SOURCE_DIR "/tests/data/goldens/" + name; }

}  // namespace cpuinfer::tools
