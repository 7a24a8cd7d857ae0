#include "engine/storage/io_queue.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "engine/storage/aligned_bytes.h"
#include "engine/storage/io_backend.h"
#include "tests/engine/checkpoint/temporary_directory.h"

using namespace cpuinfer;
using namespace cpuinfer::storage;
using checkpoint::TemporaryDirectory;

namespace {

// Those that this system has; threads are everywhere.
std::vector<IoBackend> backends() {
  std::vector<IoBackend> list = {IoBackend::kThreads};
  const auto uring = IoQueue::create(4, IoBackend::kUring);
  if (uring)
    list.push_back(IoBackend::kUring);
  else
    MESSAGE("io_uring is not tested: ", uring.error().message);
  return list;
}

constexpr int64_t kPage = DirectFile::kAlignment;

std::byte expected_byte(int64_t offset) { return static_cast<std::byte>(offset / 3 * 31 + offset); }

DirectFile make_file(const TemporaryDirectory& directory, int64_t bytes) {
  auto file = DirectFile::open(directory.path() / "data", FileAccess::kCreate);
  REQUIRE(file);
  AlignedBytes contents(bytes);
  for (int64_t i = 0; i < bytes; ++i) contents.data()[i] = expected_byte(i);
  REQUIRE(file->write(0, contents.all()));
  return std::move(*file);
}

bool has_contents(const std::byte* data, int64_t offset, int64_t bytes) {
  for (int64_t i = 0; i < bytes; ++i)
    if (data[i] != expected_byte(offset + i)) return false;
  return true;
}

}  // namespace

TEST_CASE("many reads in flight, each gets its own bytes") {
  for (const IoBackend backend : backends()) {
    CAPTURE(static_cast<int>(backend));
    const TemporaryDirectory directory;
    constexpr int kPages = 300;
    const DirectFile file = make_file(directory, kPages * kPage);
    AlignedBytes in(kPages * kPage);
    auto queue = IoQueue::create(8, backend);
    REQUIRE(queue);
    CHECK(queue->backend() == backend);
    CHECK(queue->depth() == 8);
    std::vector<int> seen(kPages, 0);
    bool good = true;
    const auto take = [&](const IoCompletion& completion) {
      good = good && completion.result;
      ++seen[completion.tag];
    };
    for (int page = 0; page < kPages; ++page) {
      const int64_t offset = (page * 7) % kPages * kPage;
      if (queue->in_flight() == queue->depth()) take(queue->wait());
      queue->submit({.descriptor = file.descriptor(),
                     .offset = offset,
                     .data = in.data() + offset,
                     .bytes = kPage,
                     .tag = static_cast<uint64_t>(page)});
      if (auto completion = queue->poll()) take(*completion);
    }
    while (queue->in_flight() > 0) take(queue->wait());
    CHECK(!queue->poll());
    CHECK(good);
    CHECK(std::all_of(seen.begin(), seen.end(), [](int count) { return count == 1; }));
    CHECK(has_contents(in.data(), 0, in.size()));
  }
}

TEST_CASE("pieces of memory are written to, and read from, one piece of the file") {
  for (const IoBackend backend : backends()) {
    CAPTURE(static_cast<int>(backend));
    const TemporaryDirectory directory;
    const DirectFile file = make_file(directory, 16 * kPage);
    AlignedBytes memory(12 * kPage);
    auto queue = IoQueue::create(2, backend);
    REQUIRE(queue);
    // In the file: page 4, 5 and 6, 7; in memory elsewhere and in another order.
    const iovec parts[] = {
        {memory.data() + 8 * kPage, kPage}, {memory.data() + kPage, 2 * kPage}, {memory.data(), kPage}};
    queue->submit({.descriptor = file.descriptor(), .offset = 4 * kPage, .parts = parts, .tag = 1});
    const IoCompletion read = queue->wait();
    CHECK(read.tag == 1);
    REQUIRE(read.result);
    CHECK(has_contents(memory.data() + 8 * kPage, 4 * kPage, kPage));
    CHECK(has_contents(memory.data() + kPage, 5 * kPage, 2 * kPage));
    CHECK(has_contents(memory.data(), 7 * kPage, kPage));

    queue->submit({.descriptor = file.descriptor(), .write = true, .offset = 10 * kPage, .parts = parts, .tag = 2});
    REQUIRE(queue->wait().result);
    AlignedBytes back(4 * kPage);
    REQUIRE(file.read(10 * kPage, back.all()));
    CHECK(has_contents(back.data(), 4 * kPage, 4 * kPage));
  }
}

TEST_CASE("the end of the file is an error that names the place, and the queue lives on") {
  for (const IoBackend backend : backends()) {
    CAPTURE(static_cast<int>(backend));
    const TemporaryDirectory directory;
    const DirectFile file = make_file(directory, 4 * kPage);
    REQUIRE(::ftruncate(file.descriptor(), 2 * kPage) == 0);
    AlignedBytes memory(4 * kPage);
    auto queue = IoQueue::create(4, backend);
    REQUIRE(queue);
    // Half of it is there; in parts, so that the second is begun anew.
    const iovec parts[] = {{memory.data(), kPage}, {memory.data() + kPage, 2 * kPage}};
    queue->submit({.descriptor = file.descriptor(), .offset = kPage, .parts = parts, .tag = 7});
    const IoCompletion half = queue->wait();
    CHECK(half.tag == 7);
    REQUIRE(!half.result);
    CHECK(half.result.error().code == ErrorCode::kRuntime);
    CHECK(half.result.error().message == "cannot read 8192 bytes at byte 8192: the file ends at byte 8192");
    queue->submit({.descriptor = file.descriptor(), .offset = 3 * kPage, .data = memory.data(), .bytes = kPage});
    const IoCompletion beyond = queue->wait();
    REQUIRE(!beyond.result);
    CHECK(beyond.result.error().message == "cannot read 4096 bytes at byte 12288: the file ends at byte 8192");
    queue->submit({.descriptor = file.descriptor(), .offset = 0, .data = memory.data(), .bytes = kPage});
    CHECK(queue->wait().result);
    CHECK(has_contents(memory.data(), 0, kPage));
  }
}

TEST_CASE("a transfer that stops short or is interrupted is continued, also inside of a part") {
  // Moves at most 3 bytes at a time, and every other time none.
  class Reluctant final : public IoTransport {
   public:
    int start(int slot, const IoOperation& operation) override {
      outcome_ = {slot, -EINTR};
      ++calls;
      if (calls % 2 == 0) return 0;
      outcome_.result = 0;
      for (int part = 0; part < operation.count && outcome_.result < 3; ++part) {
        const int64_t count =
            std::min<int64_t>(3 - outcome_.result, static_cast<int64_t>(operation.parts[part].iov_len));
        for (int64_t i = 0; i < count; ++i)
          static_cast<char*>(operation.parts[part].iov_base)[i] =
              static_cast<char>('a' + operation.offset + outcome_.result + i);
        outcome_.result += count;
      }
      return 0;
    }
    std::optional<IoOutcome> next(bool) override { return outcome_; }
    int calls = 0;

   private:
    IoOutcome outcome_;
  };
  auto transport = std::make_unique<Reluctant>();
  const Reluctant& watched = *transport;
  IoQueue queue(std::move(transport), IoBackend::kThreads, 1);
  std::string in(20, '-');
  const iovec parts[] = {{in.data() + 10, 4}, {in.data() + 1, 1}, {in.data() + 2, 6}};
  queue.submit({.descriptor = 0, .offset = 2, .parts = parts, .tag = 3});
  const IoCompletion completion = queue.wait();
  CHECK(completion.tag == 3);
  CHECK(completion.result);
  CHECK(in == "-ghijklm--cdef------");
  // 3; 1 that the part had left; 3; 3; 1, with an interruption between each.
  CHECK(watched.calls == 9);
}

TEST_CASE("a system that always says try again is not asked for ever") {
  class Refusing final : public IoTransport {
   public:
    int start(int slot, const IoOperation&) override {
      slot_ = slot;
      return 0;
    }
    std::optional<IoOutcome> next(bool) override { return IoOutcome{slot_, -EAGAIN}; }

   private:
    int slot_ = 0;
  };
  IoQueue queue(std::make_unique<Refusing>(), IoBackend::kThreads, 1);
  char byte = 0;
  queue.submit({.descriptor = 0, .offset = 0, .data = reinterpret_cast<std::byte*>(&byte), .bytes = 1});
  const IoCompletion completion = queue.wait();
  REQUIRE(!completion.result);
  CHECK(completion.result.error().message == "cannot read 1 bytes at byte 0: Resource temporarily unavailable");
}

TEST_CASE("a descriptor that is none is an error of its request") {
  for (const IoBackend backend : backends()) {
    AlignedBytes memory(kPage);
    auto queue = IoQueue::create(1, backend);
    REQUIRE(queue);
    queue->submit({.descriptor = -1, .offset = 0, .data = memory.data(), .bytes = kPage});
    const IoCompletion completion = queue->wait();
    REQUIRE(!completion.result);
    CHECK(completion.result.error().message == "cannot read 4096 bytes at byte 0: Bad file descriptor");
  }
}

TEST_CASE("a queue waits for what is in flight before it ends, and moves") {
  for (const IoBackend backend : backends()) {
    const TemporaryDirectory directory;
    const DirectFile file = make_file(directory, 8 * kPage);
    AlignedBytes memory(8 * kPage);
    {
      auto first = IoQueue::create(8, backend);
      REQUIRE(first);
      for (int page = 0; page < 8; ++page)
        first->submit({.descriptor = file.descriptor(),
                       .offset = page * kPage,
                       .data = memory.data() + page * kPage,
                       .bytes = kPage});
      const IoQueue second = std::move(*first);
      CHECK(second.in_flight() == 8);
    }
    CHECK(has_contents(memory.data(), 0, memory.size()));
  }
}

TEST_CASE("a queue needs a sensible depth, and by itself takes what there is") {
  CHECK(IoQueue::create(0).error().message == "a queue of 0 requests; it must be between 1 and 4096");
  CHECK(IoQueue::create(5000).error().code == ErrorCode::kUsage);
  CHECK(IoQueue::create(64));
}
