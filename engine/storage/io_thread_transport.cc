// Threads that do one blocking system call at a time: for where io_uring is forbidden.
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "base/format.h"
#include "engine/storage/io_backend.h"
#include "engine/storage/io_queue.h"

namespace cpuinfer::storage {
namespace {

// Numbers in the order of arrival, in memory that is taken once.
class Ring {
 public:
  explicit Ring(int capacity) : items_(static_cast<size_t>(capacity)) {}
  bool empty() const { return count_ == 0; }
  void push(const IoOutcome& item) { items_[(first_ + count_++) % items_.size()] = item; }
  IoOutcome pop() {
    const IoOutcome item = items_[first_];
    first_ = (first_ + 1) % items_.size();
    --count_;
    return item;
  }

 private:
  std::vector<IoOutcome> items_;
  size_t first_ = 0, count_ = 0;
};

class ThreadTransport final : public IoTransport {
 public:
  explicit ThreadTransport(int depth) : operations_(static_cast<size_t>(depth)), todo_(depth), done_(depth) {}
  ~ThreadTransport() override {
    {
      const std::scoped_lock lock(mutex_);
      ending_ = true;
    }
    todo_changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  /// Throws std::system_error if there is no further thread to be had.
  void add_thread() {
    threads_.emplace_back([this] { work(); });
  }
  bool any_thread() const { return !threads_.empty(); }

  int start(int slot, const IoOperation& operation) override {
    {
      const std::scoped_lock lock(mutex_);
      operations_[static_cast<size_t>(slot)] = operation;
      todo_.push({slot, 0});
    }
    todo_changed_.notify_one();
    return 0;
  }

  std::optional<IoOutcome> next(bool block) override {
    std::unique_lock lock(mutex_);
    if (!block && done_.empty()) return std::nullopt;
    done_changed_.wait(lock, [this] { return !done_.empty(); });
    return done_.pop();
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      todo_changed_.wait(lock, [this] { return ending_ || !todo_.empty(); });
      if (todo_.empty()) return;
      const int slot = todo_.pop().slot;
      const IoOperation operation = operations_[static_cast<size_t>(slot)];
      lock.unlock();
      const ssize_t moved = operation.write
                                ? ::pwritev(operation.descriptor, operation.parts, operation.count, operation.offset)
                                : ::preadv(operation.descriptor, operation.parts, operation.count, operation.offset);
      const int64_t result = moved >= 0 ? moved : -errno;
      lock.lock();
      done_.push({slot, result});
      done_changed_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable todo_changed_, done_changed_;
  std::vector<IoOperation> operations_;  // [depth]
  Ring todo_, done_;
  bool ending_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

Result<std::unique_ptr<IoTransport>> create_thread_transport(int depth) {
  auto transport = std::make_unique<ThreadTransport>(depth);
  // Signals are for the threads that expect them.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::string reason;
  try {
    for (int i = 0; i < std::min(depth, kMostIoThreads); ++i) transport->add_thread();
  } catch (const std::system_error& error) {
    reason = error.what();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  // Some threads do the work of all, only with fewer requests at a time.
  if (!transport->any_thread())
    return fail(ErrorCode::kRuntime, format("no thread for reading and writing can be had: {}", reason));
  return transport;
}

}  // namespace cpuinfer::storage
