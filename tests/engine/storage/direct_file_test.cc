#include "engine/storage/direct_file.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "engine/storage/aligned_bytes.h"
#include "tests/engine/checkpoint/temporary_directory.h"

using namespace cpuinfer;
using namespace cpuinfer::storage;
using checkpoint::TemporaryDirectory;

TEST_CASE("a file is created, written, read back and not created twice") {
  const TemporaryDirectory directory;
  const auto path = directory.path() / "pages";
  AlignedBytes out(8192), in(8192);
  for (int64_t i = 0; i < out.size(); ++i) out.data()[i] = static_cast<std::byte>(i * 7);
  {
    const auto file = DirectFile::open(path, FileAccess::kCreate);
    REQUIRE(file);
    if (!file->direct()) MESSAGE("the temporary directory refuses O_DIRECT: the page cache is tested");
    REQUIRE(file->reserve(16384));
    CHECK(*file->bytes() == 16384);
    REQUIRE(file->write(4096, out.all()));
    REQUIRE(file->sync());
  }
  const auto file = DirectFile::open(path, FileAccess::kRead);
  REQUIRE(file);
  // io_uring of older kernels would not wait for it.
  CHECK((::fcntl(file->descriptor(), F_GETFL) & O_NONBLOCK) == 0);
  REQUIRE(file->read(4096, in.all()));
  CHECK(std::equal(in.all().begin(), in.all().end(), out.all().begin()));

  const auto twice = DirectFile::open(path, FileAccess::kCreate);
  REQUIRE(!twice);
  CHECK(twice.error().code == ErrorCode::kRuntime);
  CHECK(twice.error().message == path.string() + ": cannot be created: File exists");
}

TEST_CASE("what cannot be opened is named") {
  const TemporaryDirectory directory;
  const auto missing = DirectFile::open(directory.path() / "missing", FileAccess::kRead);
  REQUIRE(!missing);
  CHECK(missing.error().code == ErrorCode::kNotFound);
  CHECK(missing.error().message.ends_with("missing: cannot be opened: No such file or directory"));
  const auto folder = DirectFile::open(directory.path(), FileAccess::kRead);
  REQUIRE(!folder);
  CHECK(folder.error().code == ErrorCode::kBadInput);
  CHECK(folder.error().message.ends_with("expected a regular file, found a directory"));
  REQUIRE(::mkfifo((directory.path() / "pipe").c_str(), 0600) == 0);
  const auto pipe = DirectFile::open(directory.path() / "pipe", FileAccess::kRead);
  REQUIRE(!pipe);
  CHECK(pipe.error().message.ends_with("expected a regular file, found a device, pipe or socket"));
}

TEST_CASE("the end of a file, and of a disk, is said with numbers") {
  const TemporaryDirectory directory;
  const auto path = directory.write("short", std::string(5000, 'x'));
  const auto file = DirectFile::open(path, FileAccess::kReadWrite);
  REQUIRE(file);
  AlignedBytes in(8192);
  const auto read = file->read(0, in.all());
  REQUIRE(!read);
  CHECK(read.error().code == ErrorCode::kRuntime);
  CHECK(read.error().message == path.string() + ": cannot read 3192 bytes at byte 5000: the file ends at byte 5000");
  const auto reserved = file->reserve(int64_t{4} << 40);
  REQUIRE(!reserved);
  CHECK(reserved.error().code == ErrorCode::kRuntime);
  CHECK_MESSAGE(reserved.error().message.starts_with(path.string() + ": no room for 4.0 TiB on its disk: "),
                reserved.error().message);
}
