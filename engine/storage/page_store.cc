#include "engine/storage/page_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "base/check.h"
#include "base/format.h"
#include "base/log.h"

namespace cpuinfer::storage {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// When a page was last used.
void set_time(const fs::path& path, int64_t ns) {
  constexpr int64_t kSecond = 1'000'000'000;
  const timespec times[] = {{0, UTIME_OMIT}, {static_cast<time_t>(ns / kSecond), static_cast<long>(ns % kSecond)}};
  ::utimensat(AT_FDCWD, path.c_str(), times, 0);
}

}  // namespace

PageStore::~PageStore() {
  wait();
  {
    const std::scoped_lock lock(mutex_);
    ending_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  if (lock_ >= 0) ::close(lock_);
}

// ---------------------------------------------------------------------------------------------------------------------
// The index

bool PageStore::contains(const PageKey& key) {
  const std::scoped_lock lock(mutex_);
  return is_ready(key);
}

// Whether it can be read. A file that was cut short is dropped here, before anybody relies on it.
bool PageStore::is_ready(const PageKey& key) {
  const auto entry = entries_.find(key);
  if (entry == entries_.end() || !entry->second.ready) return false;
  const int64_t expected = options_.shape.file_bytes();
  if (entry->second.bytes == expected) return true;
  drop(key, format("{}: is {} bytes long, expected {}", path(key).string(), entry->second.bytes, expected));
  return false;
}

fs::path PageStore::path(const PageKey& key) const { return options_.directory / "pages" / key.hex(); }

void PageStore::add(const PageKey& key, int64_t bytes, bool ready, Order::iterator where) {
  entries_[key] = {bytes, order_.insert(where, key), ready};
  ++statistics_.pages;
  statistics_.bytes += bytes;
}

void PageStore::touch(const PageKey& key) {
  const auto entry = entries_.find(key);
  if (entry == entries_.end()) return;
  order_.splice(order_.end(), order_, entry->second.place);
  if (entry->second.ready) mark_used(key);
}

// On disk, for the next process.
void PageStore::mark_used(const PageKey& key) {
  const int64_t now =
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  last_use_ns_ = std::max(now, last_use_ns_ + 1);
  if (read_only_) return;
  set_time(path(key), last_use_ns_);
}

void PageStore::erase(const PageKey& key) {
  const auto entry = entries_.find(key);
  if (entry == entries_.end()) return;
  --statistics_.pages;
  statistics_.bytes -= entry->second.bytes;
  order_.erase(entry->second.place);
  entries_.erase(entry);
}

// What comes behind the newcomer has been used later, or is what it is of use with.
bool PageStore::evict_one(const PageKey* newcomer) {
  for (const PageKey& key : order_) {
    if (newcomer != nullptr && key == *newcomer) return false;
    if (pins_.contains(key)) continue;
    ::unlink(path(key).c_str());
    erase(PageKey(key));
    ++statistics_.evicted_pages;
    return true;
  }
  return false;
}

bool PageStore::make_room(const PageKey* newcomer) {
  while (statistics_.bytes > limit_bytes_)
    if (!evict_one(newcomer)) return false;
  return true;
}

void PageStore::stop_writing(const std::string& why) {
  if (std::exchange(read_only_, true)) return;
  log_warn("the KV store takes no more pages: {}; what it has is still used", why);
}

void PageStore::pin(const PageKey& key) {
  const std::scoped_lock lock(mutex_);
  ++pins_[key];
}

void PageStore::unpin(const PageKey& key) {
  const std::scoped_lock lock(mutex_);
  const auto pin = pins_.find(key);
  ENSURE(pin != pins_.end(), "only pinned pages are unpinned");
  if (--pin->second == 0) pins_.erase(pin);
}

void PageStore::remove_damaged(const PageKey& key, const std::string& reason) {
  const std::scoped_lock lock(mutex_);
  drop(key, reason);
}

void PageStore::drop(const PageKey& key, const std::string& reason) {
  log_warn("the KV store drops a page, which will be computed again: {}", reason);
  if (!read_only_) ::unlink(path(key).c_str());
  erase(key);
  ++statistics_.damaged_pages;
}

bool PageStore::read_only() const {
  const std::scoped_lock lock(mutex_);
  return read_only_;
}

PageStoreStatistics PageStore::statistics() const {
  const std::scoped_lock lock(mutex_);
  PageStoreStatistics statistics = statistics_;
  if (writing_ > 0) statistics.write_seconds += seconds_since(writing_since_);
  return statistics;
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading and writing

void PageStore::work() {
  PageHeader header(options_.shape);
  std::unique_lock lock(mutex_);
  for (;;) {
    work_.wait(lock, [&] { return ending_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    if (job.read != nullptr)
      *job.read = read_page_file(path(job.page.key), options_.shape, job.page, header);
    else
      do_write(job, header);
    lock.lock();
    if (job.read != nullptr) {
      --reading_;
    } else {
      ended_.push_back(job.tag);
      if (--writing_ == 0) statistics_.write_seconds += seconds_since(writing_since_);
    }
    done_.notify_all();
  }
}

int64_t PageStore::read(std::span<const PageContent> pages) {
  const Clock::time_point start = Clock::now();
  std::vector<Result<void>> results(pages.size());
  std::unique_lock lock(mutex_);
  for (size_t i = 0; i < pages.size(); ++i) {
    if (!is_ready(pages[i].key)) {
      pages = pages.first(i);
      break;
    }
    jobs_.push_back({pages[i], 0, &results[i]});
    ++reading_;
  }
  work_.notify_all();
  done_.wait(lock, [&] { return reading_ == 0; });
  size_t count = 0;
  while (count < pages.size() && results[count]) ++count;
  // Last to first: of pages that follow each other the later ones are evicted earlier, as they are of no use alone.
  for (size_t i = count; i-- > 0;) touch(pages[i].key);
  statistics_.read_pages += static_cast<int64_t>(count);
  statistics_.read_bytes += static_cast<int64_t>(count) * options_.shape.file_bytes();
  statistics_.read_seconds += seconds_since(start);
  lock.unlock();
  for (size_t i = 0; i < pages.size(); ++i) {
    if (results[i]) continue;
    const Error& error = results[i].error();
    if (error.code == ErrorCode::kBadInput || error.code == ErrorCode::kNotFound)
      remove_damaged(pages[i].key, error.message);
    else if (i == count)
      log_warn("a page of the KV store cannot be read, and is computed: {}", error.message);
  }
  return static_cast<int64_t>(count);
}

void PageStore::write(PageContent page, std::span<const PageKey> before, int tag) {
  const std::scoped_lock lock(mutex_);
  // Without the page before it nobody finds it.
  const bool is_lost = !before.empty() && !entries_.contains(before.back());
  if (read_only_ || is_lost || is_ready(page.key) || entries_.contains(page.key)) {
    touch(page.key);
    for (size_t i = before.size(); i-- > 0;) touch(before[i]);
    ended_.push_back(tag);
    return;
  }
  // In order just before its parent; its bytes count from now on, so that writes at the same time keep within the size.
  mark_used(page.key);  // its time, given to the file when it is written
  const int64_t used_ns = last_use_ns_;
  for (size_t i = before.size(); i-- > 0;) touch(before[i]);
  add(page.key, options_.shape.file_bytes(), false,
      before.empty() ? order_.end() : entries_.find(before.back())->second.place);
  if (!make_room(&page.key)) {
    erase(page.key);
    if (!std::exchange(warned_of_pins_, true))
      log_warn(
          "the KV store is full ({}) of pages that are in use, or that come before those that it does not keep now: "
          "a larger --kv-store-size would keep them",
          format_bytes(limit_bytes_));
    ended_.push_back(tag);
    return;
  }
  ++pins_[page.key];
  if (writing_++ == 0) writing_since_ = Clock::now();
  jobs_.push_back({.page = std::move(page), .tag = tag, .read = nullptr, .used_ns = used_ns});
  work_.notify_one();
}

void PageStore::do_write(Job& job, PageHeader& header) {
  const PageKey& key = job.page.key;
  bool again = true;
  while (again) {
    bool full = false;
    const Result<void> written = write_page_file(path(key), options_.shape, job.page, header, full);
    const std::scoped_lock lock(mutex_);
    if (written) {
      entries_.find(key)->second.ready = true;
      ++statistics_.written_pages;
      statistics_.written_bytes += options_.shape.file_bytes();
      set_time(path(key), job.used_ns);
      again = false;
    } else if (read_only_ || !full || !evict_one(&key)) {
      // A full disk may have room once an old page is gone.
      stop_writing(written.error().message);
      erase(key);
      again = false;
    }
    if (!again && --pins_[key] == 0) pins_.erase(key);
  }
}

void PageStore::collect(std::vector<int>& tags) {
  const std::scoped_lock lock(mutex_);
  tags.insert(tags.end(), ended_.begin(), ended_.end());
  ended_.clear();
}

void PageStore::wait() {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return writing_ == 0; });
}

}  // namespace cpuinfer::storage
