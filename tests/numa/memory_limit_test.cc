#include "numa/memory_limit.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <fstream>

#include "base/format.h"
#include "base/types.h"

using namespace cpuinfer;
using numa::available_memory;
using numa::MemoryLimit;
using numa::MemorySources;

namespace {

namespace fs = std::filesystem;

/// A directory that looks like the root of a machine with 8 GiB available.
class FakeRoot {
 public:
  FakeRoot() : root_(fs::temp_directory_path() / format("cpuinfer_memory_limit_test_{}", getpid())) {
    fs::remove_all(root_);
    write("proc/meminfo", "MemTotal:       16777216 kB\nMemFree:  100 kB\nMemAvailable:    8388608 kB\n");
  }
  ~FakeRoot() { fs::remove_all(root_); }
  void write(const fs::path& path, std::string_view text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  MemoryLimit limit() const { return available_memory(MemorySources{.root = root_}); }
  const fs::path& path() const { return root_; }

 private:
  fs::path root_;
};

const char* const kMountV2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
const char* const kMountV1 =
    "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n";

}  // namespace

TEST_CASE("without control groups MemAvailable binds") {
  FakeRoot root;
  CHECK(root.limit().bytes == 8_GiB);
  CHECK(root.limit().reason == "the machine has 8.0 GiB available (MemAvailable)");
}

TEST_CASE("v2: memory.max of the group itself; page cache counts as free") {
  FakeRoot root;
  root.write("proc/self/mountinfo", kMountV2);
  root.write("proc/self/cgroup", "0::/a/b\n");
  root.write("sys/fs/cgroup/a/b/memory.max", "4294967296\n");
  root.write("sys/fs/cgroup/a/b/memory.current", "2147483648\n");
  CHECK(root.limit().bytes == 2_GiB);
  root.write("sys/fs/cgroup/a/b/memory.stat", "anon 1\nactive_file 268435456\ninactive_file 805306368\nslab 3\n");
  CHECK(root.limit().bytes == 3_GiB);
  CHECK(root.limit().reason == "control group /sys/fs/cgroup/a/b allows 4.0 GiB (memory.max) and 1.0 GiB are used");
}

TEST_CASE("v2: an ancestor's limit and memory.high bind too; \"max\" is no limit") {
  FakeRoot root;
  root.write("proc/self/mountinfo", kMountV2);
  root.write("proc/self/cgroup", "0::/a/b/c\n");
  root.write("sys/fs/cgroup/a/b/c/memory.max", "max\n");
  root.write("sys/fs/cgroup/a/b/c/memory.current", "1073741824\n");
  root.write("sys/fs/cgroup/a/memory.max", "6442450944\n");
  root.write("sys/fs/cgroup/a/memory.high", "5368709120\n");
  root.write("sys/fs/cgroup/a/memory.current", "1073741824\n");
  CHECK(root.limit().bytes == 4_GiB);
  CHECK(root.limit().reason == "control group /sys/fs/cgroup/a allows 5.0 GiB (memory.high) and 1.0 GiB are used");
}

TEST_CASE("the limit at the mount point itself binds, and nothing is negative") {
  FakeRoot root;
  root.write("proc/self/mountinfo", kMountV2);
  root.write("proc/self/cgroup", "0::/\n");
  root.write("sys/fs/cgroup/memory.max", "1073741824\n");
  root.write("sys/fs/cgroup/memory.current", "1173741824\n");
  CHECK(root.limit().bytes == 0);
  CHECK(root.limit().reason.starts_with("control group /sys/fs/cgroup allows 1.0 GiB"));
}

TEST_CASE("v1: the memory hierarchy, with the total_ statistics") {
  FakeRoot root;
  root.write("proc/self/mountinfo", kMountV1);
  root.write("proc/self/cgroup", "5:cpu,cpuacct:/other\n4:memory:/job/7\n0::/\n");
  root.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  root.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "99999999999\n");
  root.write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "3221225472\n");
  root.write("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "2147483648\n");
  root.write("sys/fs/cgroup/memory/job/memory.stat", "inactive_file 1\ntotal_inactive_file 1073741824\n");
  CHECK(root.limit().bytes == 2_GiB);
  CHECK(root.limit().reason ==
        "control group /sys/fs/cgroup/memory/job allows 3.0 GiB (memory.limit_in_bytes) and 1.0 GiB are used");
}

TEST_CASE("in a container the mount shows a part of the hierarchy") {
  FakeRoot root;
  root.write("proc/self/mountinfo", "35 31 0:32 /docker/f00 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
  root.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n");
  root.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "0\n");
  root.write("sys/fs/cgroup/memory/inner/memory.limit_in_bytes", "1073741824\n");
  root.write("sys/fs/cgroup/memory/inner/memory.usage_in_bytes", "0\n");
  root.write("proc/self/cgroup", "4:memory:/docker/f00\n");
  CHECK(root.limit().bytes == 2_GiB);
  root.write("proc/self/cgroup", "4:memory:/docker/f00/inner\n");
  CHECK(root.limit().bytes == 1_GiB);
  root.write("proc/self/cgroup", "4:memory:/somewhere/else\n");
  CHECK(root.limit().bytes == 2_GiB);
  root.write("proc/self/cgroup", "4:memory:/docker/f00/../../../../..\n");
  CHECK(root.limit().bytes == 2_GiB);
}

TEST_CASE("the address space limit binds") {
  FakeRoot root;
  const MemoryLimit limit =
      available_memory(MemorySources{.root = root.path(), .address_space_limit = 3_GiB, .address_space_used = 1_GiB});
  CHECK(limit.bytes == 2_GiB);
  CHECK(limit.reason == "`ulimit -v` allows 3.0 GiB of address space and 1.0 GiB are mapped");
}

TEST_CASE("the limit of private memory binds, and stacks to come take of it") {
  FakeRoot root;
  MemorySources sources = {.root = root.path(), .data_limit = 3_GiB, .data_used = 1_GiB};
  CHECK(available_memory(sources).bytes == 2_GiB);
  CHECK(available_memory(sources).reason == "`ulimit -d` allows 3.0 GiB of private memory and 1.0 GiB are mapped");
  sources.unfilled_bytes = 512_MiB;
  CHECK(available_memory(sources).bytes == 1536_MiB);
  CHECK(available_memory(sources).reason ==
        "`ulimit -d` allows 3.0 GiB of private memory and 1.0 GiB are mapped; stacks of threads take 512.0 MiB more");
  // What is mapped and not filled takes no memory.
  sources.data_limit = -1;
  CHECK(available_memory(sources).bytes == 8_GiB);
}

TEST_CASE("a kernel that promises no more than it has") {
  FakeRoot root;
  root.write("proc/meminfo", "MemAvailable:    8388608 kB\nCommitLimit:     6291456 kB\nCommitted_AS:    2097152 kB\n");
  CHECK(root.limit().bytes == 8_GiB);
  root.write("proc/sys/vm/overcommit_memory", "0\n");
  CHECK(root.limit().bytes == 8_GiB);
  root.write("proc/sys/vm/overcommit_memory", "2\n");
  CHECK(root.limit().bytes == 4_GiB);
  CHECK(root.limit().reason ==
        "vm.overcommit_memory is 2: the machine promises 6.0 GiB (CommitLimit) and has promised 2.0 GiB");
}

TEST_CASE("malformed files set no limit") {
  FakeRoot root;
  root.write("proc/self/mountinfo", "30 23\n\n- - -\n30 23 0:26 / /sys/fs/cgroup rw - cgroup2\nnonsense");
  root.write("proc/self/cgroup", "0\n::\nx:y\n");
  CHECK(root.limit().bytes == 8_GiB);
  root.write("proc/self/mountinfo", kMountV2);
  root.write("proc/self/cgroup", "0::/a\n");
  root.write("sys/fs/cgroup/a/memory.max", "lots\n");
  root.write("sys/fs/cgroup/a/memory.current", "-3\n");
  CHECK(root.limit().bytes == 8_GiB);
}

TEST_CASE("a system that says nothing has nothing") {
  const MemoryLimit limit = available_memory(MemorySources{.root = "/nonexistent"});
  CHECK(limit.bytes == 0);
  CHECK(limit.reason == "the system does not say how much memory is available (/proc/meminfo)");
}

TEST_CASE("this process has memory, and a reason") {
  const MemoryLimit limit = available_memory();
  CHECK(limit.bytes > 0);
  CHECK_FALSE(limit.reason.empty());
  MESSAGE(limit.reason);
}
