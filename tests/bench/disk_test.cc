// What the measurement of a disk reads, what it leaves behind, and every message that it has. Not speed.
#include "bench/disk.h"

#include <dlfcn.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdarg>
#include <fstream>
#include <functional>

#include "base/format.h"
#include "base/types.h"
#include "tests/bench/machine.h"

namespace {
std::atomic<bool> refuse_direct = false;
}

// Every file system at hand knows O_DIRECT: one that does not is played.
extern "C" int fcntl(int descriptor, int command, ...) {
  va_list arguments;
  va_start(arguments, command);
  void* const argument = va_arg(arguments, void*);
  va_end(arguments);
  if (refuse_direct && command == F_SETFL && (reinterpret_cast<intptr_t>(argument) & O_DIRECT) != 0) {
    errno = EINVAL;
    return -1;
  }
  static const auto next = reinterpret_cast<int (*)(int, int, void*)>(dlsym(RTLD_NEXT, "fcntl"));
  return next(descriptor, command, argument);
}

using namespace cpuinfer;
using namespace cpuinfer::bench;

namespace {

namespace fs = std::filesystem;

struct TemporaryDirectory {
  explicit TemporaryDirectory(const fs::path& parent = fs::temp_directory_path())
      : path(parent / format("cpuinfer-disk-test-{}", getpid())) {
    fs::remove_all(path);
    fs::create_directories(path);
  }
  ~TemporaryDirectory() { fs::remove_all(path); }
  fs::path path;
};

// For root, whom no permission stops: another user until the end of the block.
struct Unprivileged {
  Unprivileged() {
    if (geteuid() == 0) REQUIRE(seteuid(65534) == 0);
  }
  ~Unprivileged() {
    if (geteuid() != getuid()) REQUIRE(seteuid(getuid()) == 0);
  }
};

void write_file(const fs::path& path, int64_t bytes) {
  std::ofstream(path) << std::string(static_cast<size_t>(bytes), 'a');
}

DiskOptions of_model(const fs::path& directory) {
  DiskOptions options;
  options.model = directory;
  options.seconds = 0.05;
  return options;
}

DiskOptions of_temporary(const fs::path& directory) {
  DiskOptions options;
  options.directory = directory;
  options.temporary_bytes = 16_MiB;
  options.seconds = 0.05;
  return options;
}

void fails(const DiskOptions& options, ErrorCode code, const std::string& message, const Watch& watch = {}) {
  const auto figure = measure_disk(machine(), options, watch);
  REQUIRE_FALSE(figure.has_value());
  CHECK(figure.error().code == code);
  CHECK(figure.error().message == message);
}

void check_entries(const Result<DiskFigure>& figure) {
  REQUIRE_MESSAGE(figure.has_value(), figure.error().message);
  REQUIRE(figure->entries.size() == 12);
  for (const DiskEntry& entry : figure->entries) {
    CHECK(std::isfinite(entry.bytes_per_second));
    CHECK(entry.bytes_per_second > 0);
    CHECK(entry.bytes_per_second <= figure->winner().bytes_per_second);
  }
}

// What `work` returns when it runs in a process that has a file system of `bytes` in memory at `directory`; empty where
// the system allows no such thing.
std::string with_small_disk(const fs::path& directory, int64_t bytes, const std::function<std::string()>& work) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const uid_t user = getuid();
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    bool ready = unshare(CLONE_NEWNS) == 0;
    if (!ready && unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0) {
      std::ofstream("/proc/self/uid_map") << "0 " << user << " 1";
      ready = true;
    }
    ready = ready && mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
            mount("none", directory.c_str(), "tmpfs", 0, format("size={}", bytes).c_str()) == 0;
    const std::string text = ready ? work() : "";
    _exit(write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0 : 1);
  }
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t got; (got = read(ends[0], buffer, sizeof(buffer))) > 0;) text.append(buffer, static_cast<size_t>(got));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(status == 0);
  return text;
}

}  // namespace

TEST_CASE("a temporary file leaves nothing behind, a model's files are read where they are") {
  const TemporaryDirectory directory;
  const auto temporary = measure_disk(machine(), of_temporary(directory.path));
  check_entries(temporary);
  CHECK(temporary->what == format("a temporary file in {} (16.0 MiB)", directory.path.string()));
  CHECK(fs::is_empty(directory.path));

  write_file(directory.path / "model-1.safetensors", 9_MiB);
  write_file(directory.path / "model-2.safetensors", 17_MiB);
  write_file(directory.path / "model-3.safetensors", 5);
  // Neither keeps anybody waiting, nor is it read.
  REQUIRE(mkfifo((directory.path / "pipe.safetensors").c_str(), 0600) == 0);
  fs::create_directory(directory.path / "directory.safetensors");
  const auto model = measure_disk(machine(), of_model(directory.path));
  check_entries(model);
  CHECK(model->what.starts_with(format("5 safetensors files of {} (26.0 MiB)", directory.path.string())));
}

TEST_CASE("how the page cache was kept out") {
  const TemporaryDirectory directory;
  write_file(directory.path / "model.safetensors", 8_MiB);
  struct statfs system{};
  REQUIRE(statfs(directory.path.c_str(), &system) == 0);
  const bool in_memory = system.f_type == TMPFS_MAGIC || system.f_type == RAMFS_MAGIC;
  const auto direct = measure_disk(machine(), of_model(directory.path));
  check_entries(direct);
  if (in_memory) MESSAGE("the directory for temporary files lies in memory: O_DIRECT is not tested");
  if (!in_memory && direct->direct) CHECK(direct->cache == "O_DIRECT");

  refuse_direct = true;
  const auto refused = measure_disk(machine(), of_model(directory.path));
  const auto temporary = measure_disk(machine(), of_temporary(directory.path));
  refuse_direct = false;
  for (const auto* figure : {&refused, &temporary}) {
    check_entries(*figure);
    CHECK_FALSE((*figure)->direct);
    if (!in_memory)
      CHECK((*figure)->cache == "the file system refuses O_DIRECT: the cache was dropped once before each entry");
  }

  if (statfs("/dev/shm", &system) != 0 || system.f_type != TMPFS_MAGIC || access("/dev/shm", W_OK) != 0) {
    MESSAGE("/dev/shm is no file system in memory: not tested");
    return;
  }
  const TemporaryDirectory memory("/dev/shm");
  const auto figure = measure_disk(machine(), of_temporary(memory.path));
  check_entries(figure);
  CHECK_FALSE(figure->direct);
  CHECK(figure->cache == "the file system lies in memory: this is no disk's speed");
}

TEST_CASE("a model that cannot be read") {
  const TemporaryDirectory directory;
  const std::string name = directory.path.string();
  fails(of_model(directory.path), ErrorCode::kNotFound,
        name +
            ": no *.safetensors file of 8.0 MiB or more to read; give --disk with a directory on the disk to be "
            "measured instead");
  write_file(directory.path / "model.safetensors", 0);
  write_file(directory.path / "model-2.safetensors", 8_MiB - 1);
  write_file(directory.path / "model.bin", 8_MiB);
  fails(of_model(directory.path), ErrorCode::kNotFound,
        name +
            ": no *.safetensors file of 8.0 MiB or more to read; give --disk with a directory on the disk to be "
            "measured instead");
  fails(of_model(directory.path / "absent"), ErrorCode::kNotFound,
        format("cannot read the directory {}/absent: No such file or directory", name));
  fails(of_model(directory.path / "model.bin"), ErrorCode::kNotFound,
        format("cannot read the directory {}/model.bin: Not a directory", name));

  fs::create_symlink(directory.path / "absent", directory.path / "link.safetensors");
  fails(of_model(directory.path), ErrorCode::kNotFound,
        format("cannot open {}/link.safetensors: No such file or directory", name));
  fs::remove(directory.path / "link.safetensors");

  fs::permissions(directory.path / "model.safetensors", fs::perms::none);
  {
    const Unprivileged user;
    fails(of_model(directory.path), ErrorCode::kPermission,
          format("cannot open {}/model.safetensors: Permission denied", name));
  }
  fs::permissions(directory.path, fs::perms::none);
  {
    const Unprivileged user;
    fails(of_model(directory.path), ErrorCode::kPermission,
          format("cannot read the directory {}: Permission denied", name));
  }
  fs::permissions(directory.path, fs::perms::owner_all);
}

TEST_CASE("a file that becomes shorter while it is read") {
  const TemporaryDirectory directory;
  const fs::path path = directory.path / "model.safetensors";
  write_file(path, 8_MiB);
  const Watch watch{.cancel = nullptr, .progress = [&](double) { fs::resize_file(path, 0); }};
  fails(of_model(directory.path), ErrorCode::kRuntime,
        format("reading 1 safetensors file of {} (8.0 MiB) failed: a file has become shorter", directory.path.string()),
        watch);
}

TEST_CASE("a read that the disk refuses") {
  const TemporaryDirectory directory;
  const fs::path path = directory.path / "model.safetensors";
  write_file(path, 8_MiB);
  // Its descriptor is closed behind the back of the measurement.
  std::vector<int> closed;
  const Watch watch{.cancel = nullptr, .progress = [&](double) {
                      for (const fs::directory_entry& entry : fs::directory_iterator("/proc/self/fd")) {
                        std::error_code error;
                        if (fs::read_symlink(entry.path(), error) == path)
                          closed.push_back(std::stoi(entry.path().filename()));
                      }
                      for (const int descriptor : closed) close(descriptor);
                    }};
  fails(of_model(directory.path), ErrorCode::kRuntime,
        format("reading 1 safetensors file of {} (8.0 MiB) failed: Bad file descriptor", directory.path.string()),
        watch);
}

TEST_CASE("a temporary file that cannot be made or written") {
  const TemporaryDirectory directory;
  const std::string name = directory.path.string();
  write_file(directory.path / "file", 1);
  fails(of_temporary(directory.path / "absent"), ErrorCode::kNotFound,
        format("cannot make a file in {}/absent: No such file or directory", name));
  fails(of_temporary(directory.path / "file"), ErrorCode::kNotFound,
        format("cannot make a file in {}/file: Not a directory", name));
  fs::remove(directory.path / "file");
  fs::permissions(directory.path, fs::perms::owner_read | fs::perms::owner_exec);
  {
    const Unprivileged user;
    fails(of_temporary(directory.path), ErrorCode::kPermission,
          format("cannot make a file in {}: Permission denied", name));
  }
  fs::permissions(directory.path, fs::perms::owner_all);

  // More than the system lets a process write.
  rlimit before{};
  REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  const rlimit none = {0, before.rlim_max};
  REQUIRE(setrlimit(RLIMIT_FSIZE, &none) == 0);
  const auto too_large = measure_disk(machine(), of_temporary(directory.path));
  REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
  signal(SIGXFSZ, handler);
  REQUIRE_FALSE(too_large.has_value());
  CHECK(too_large.error().code == ErrorCode::kRuntime);
  CHECK(too_large.error().message == format("cannot write to a temporary file in {}: File too large", name));

  const auto message = [&]() -> std::string {
    const auto figure = measure_disk(machine(), of_temporary(directory.path));
    return figure ? "it fits" : figure.error().message;
  };
  const std::string full = with_small_disk(directory.path, 1_MiB, message);
  if (full.empty())
    MESSAGE("no file system can be mounted here: a full disk is not tested");
  else
    CHECK(full == format("cannot write to a temporary file in {}: No space left on device", name));
  CHECK(fs::is_empty(directory.path));
}

TEST_CASE("an interrupted measurement leaves nothing behind") {
  const TemporaryDirectory directory;
  std::atomic<bool> cancel = true;
  fails(of_temporary(directory.path), ErrorCode::kInterrupted, "interrupted while measuring",
        {.cancel = &cancel, .progress = {}});
  // While it reads, too.
  cancel = false;
  fails(of_temporary(directory.path), ErrorCode::kInterrupted, "interrupted while measuring",
        {.cancel = &cancel, .progress = [&](double done) { cancel = done > 0; }});
  CHECK(fs::is_empty(directory.path));
}
