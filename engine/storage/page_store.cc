#include "engine/storage/page_store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/format.h"
#include "base/log.h"

namespace cpuinfer::storage {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr const char* kFormatFile = "FORMAT";
constexpr std::string_view kFormatText = "cpuinfer KV page store, version 1\n";
// Enough that a disk has always something to do: one transfer is a whole page, which the system cuts into many.
constexpr int kThreads = 4;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::string system_text(int error) { return std::error_code(error, std::generic_category()).message(); }

std::unexpected<Error> failure(const fs::path& path, const char* what, int error) {
  const ErrorCode code = error == EACCES || error == EPERM || error == EROFS ? ErrorCode::kPermission
                         : error == ENOENT || error == ENOTDIR               ? ErrorCode::kNotFound
                                                                             : ErrorCode::kRuntime;
  return fail(code, format("{}: {}: {}", path.string(), what, system_text(error)));
}

// The key that a file is named after.
std::optional<PageKey> parse_key(std::string_view name) {
  PageKey key;
  if (name.size() != 2 * key.bytes.size()) return std::nullopt;
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
  for (size_t i = 0; i < key.bytes.size(); ++i) {
    const int high = digit(name[2 * i]), low = digit(name[2 * i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    key.bytes[i] = static_cast<std::byte>(16 * high + low);
  }
  return key;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Opening

Result<std::unique_ptr<PageStore>> PageStore::open(const PageStoreOptions& options) {
  const PageShape& shape = options.shape;
  ENSURE(shape.piece_bytes % DirectFile::kAlignment == 0, "pieces are whole blocks of a disk");
  if (options.size_bytes != 0 && options.size_bytes < shape.file_bytes())
    return fail(ErrorCode::kUsage,
                format("the KV store's size is {}, and one page of {} tokens of this model takes {}",
                       format_bytes(options.size_bytes), shape.page_tokens, format_bytes(shape.file_bytes())));
  std::unique_ptr<PageStore> store(new PageStore(options));
  TRY(store->prepare_directory());
  store->scan();
  for (int i = 0; i < kThreads; ++i) store->threads_.emplace_back([&self = *store] { self.work(); });
  return store;
}

Result<void> PageStore::prepare_directory() {
  const fs::path& directory = options_.directory;
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) return failure(directory, "cannot make the directory of the KV store", error.value());
  lock_ = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ < 0) return failure(directory, "cannot open the directory of the KV store", errno);
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return failure(directory, "cannot lock the KV store", errno);
    return fail(ErrorCode::kRuntime, format("{}: another process uses this KV store; wait for it, or give another "
                                            "directory",
                                            directory.string()));
  }

  const fs::path format_file = directory / kFormatFile;
  const int descriptor = ::open(format_file.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor >= 0) {
    char text[256];
    const ssize_t got = ::read(descriptor, text, sizeof(text));
    ::close(descriptor);
    if (std::string_view(text, static_cast<size_t>(std::max<ssize_t>(got, 0))) != kFormatText)
      return fail(ErrorCode::kBadInput, format("{}: expected '{}': another version or no KV store of cpuinfer; give "
                                               "another directory, or remove this one",
                                               format_file.string(), kFormatText.substr(0, kFormatText.size() - 1)));
  } else if (!fs::is_empty(directory, error)) {
    return fail(ErrorCode::kBadInput, format("{}: is not empty and no KV store (it has no file {}); give another "
                                             "directory",
                                             directory.string(), kFormatFile));
  } else {
    const int made = ::open(format_file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    const bool written =
        made >= 0 &&
        ::write(made, kFormatText.data(), kFormatText.size()) == static_cast<ssize_t>(kFormatText.size()) &&
        ::fsync(made) == 0;
    const int write_error = errno;
    if (made >= 0) ::close(made);
    if (!written) {
      ::unlink(format_file.c_str());
      return failure(format_file, "cannot make a KV store", write_error);
    }
  }
  fs::create_directory(directory / "pages", error);
  if (error || ::access((directory / "pages").c_str(), W_OK) != 0)
    stop_writing(format("{} cannot be written to: {}", (directory / "pages").string(),
                        system_text(error ? error.value() : errno)));
  return {};
}

void PageStore::scan() {
  struct Found {
    timespec used;
    PageKey key;
    int64_t bytes;
  };
  std::vector<Found> found;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(options_.directory / "pages", error)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(kTemporarySuffix)) {
      if (!read_only_) ::unlink(entry.path().c_str());
      continue;
    }
    struct stat status;
    const std::optional<PageKey> key = parse_key(name);
    if (!key || ::stat(entry.path().c_str(), &status) != 0 || !S_ISREG(status.st_mode)) continue;
    found.push_back({status.st_mtim, *key, static_cast<int64_t>(status.st_size)});
  }
  std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
    return std::pair(a.used.tv_sec, a.used.tv_nsec) < std::pair(b.used.tv_sec, b.used.tv_nsec);
  });
  const std::scoped_lock lock(mutex_);
  for (const Found& page : found) add(page.key, page.bytes, true);
  if (!read_only_) make_room(0);
}

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

bool PageStore::contains(const PageKey& key) const {
  const std::scoped_lock lock(mutex_);
  return is_ready(key);
}

bool PageStore::is_ready(const PageKey& key) const {
  const auto entry = entries_.find(key);
  return entry != entries_.end() && entry->second.ready;
}

fs::path PageStore::path(const PageKey& key) const { return options_.directory / "pages" / key.hex(); }

void PageStore::add(const PageKey& key, int64_t bytes, bool ready) {
  if (entries_.contains(key)) erase(key);
  order_.push_back(key);
  entries_[key] = {bytes, std::prev(order_.end()), ready};
  ++statistics_.pages;
  statistics_.bytes += bytes;
}

void PageStore::touch(const PageKey& key) {
  const auto entry = entries_.find(key);
  if (entry == entries_.end()) return;
  order_.splice(order_.end(), order_, entry->second.place);
  if (!read_only_) ::utimensat(AT_FDCWD, path(key).c_str(), nullptr, 0);
}

void PageStore::erase(const PageKey& key) {
  const auto entry = entries_.find(key);
  if (entry == entries_.end()) return;
  --statistics_.pages;
  statistics_.bytes -= entry->second.bytes;
  order_.erase(entry->second.place);
  entries_.erase(entry);
}

bool PageStore::evict_one() {
  for (const PageKey& key : order_) {
    if (pins_.contains(key)) continue;
    ::unlink(path(key).c_str());
    erase(PageKey(key));
    ++statistics_.evicted_pages;
    return true;
  }
  return false;
}

bool PageStore::make_room(int64_t bytes) {
  if (options_.size_bytes == 0) return true;
  while (statistics_.bytes + bytes > options_.size_bytes)
    if (!evict_one()) return false;
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
  log_warn("the KV store drops a page, which will be computed again: {}", reason);
  if (!read_only_) ::unlink(path(key).c_str());
  erase(key);
  ++statistics_.damaged_pages;
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
    job.good != nullptr ? do_read(job, header) : do_write(job, header);
    lock.lock();
    if (job.good != nullptr) {
      --reading_;
    } else {
      ended_.push_back(job.tag);
      if (--writing_ == 0) statistics_.write_seconds += seconds_since(writing_since_);
    }
    done_.notify_all();
  }
}

void PageStore::do_read(Job& job, PageHeader& header) {
  const Result<void> read = read_page_file(path(job.page.key), options_.shape, job.page, header);
  *job.good = read.has_value();
  if (!read) *job.error = read.error().message;
}

int64_t PageStore::read(std::span<const PageContent> pages) {
  const Clock::time_point start = Clock::now();
  std::unique_ptr<bool[]> good(new bool[pages.size()]());
  std::vector<std::string> errors(pages.size());
  std::unique_lock lock(mutex_);
  for (size_t i = 0; i < pages.size(); ++i) {
    if (!is_ready(pages[i].key)) {
      pages = pages.first(i);
      break;
    }
    jobs_.push_back({pages[i], 0, &good[i], &errors[i]});
    ++reading_;
  }
  work_.notify_all();
  done_.wait(lock, [&] { return reading_ == 0; });
  const int64_t count = std::find(good.get(), good.get() + pages.size(), false) - good.get();
  // Last to first: of pages that follow each other the later ones are evicted earlier, as they are of no use alone.
  for (int64_t i = count - 1; i >= 0; --i) touch(pages[static_cast<size_t>(i)].key);
  statistics_.read_pages += count;
  statistics_.read_bytes += count * options_.shape.file_bytes();
  statistics_.read_seconds += seconds_since(start);
  lock.unlock();
  for (size_t i = 0; i < pages.size(); ++i)
    if (!good[i]) remove_damaged(pages[i].key, errors[i]);
  return count;
}

void PageStore::write(PageContent page, int tag) {
  const std::scoped_lock lock(mutex_);
  if (read_only_ || entries_.contains(page.key)) {
    touch(page.key);
    ended_.push_back(tag);
    return;
  }
  if (writing_++ == 0) writing_since_ = Clock::now();
  jobs_.push_back({std::move(page), tag});
  work_.notify_one();
}

void PageStore::do_write(Job& job, PageHeader& header) {
  const int64_t bytes = options_.shape.file_bytes();
  const PageKey key = job.page.key;
  for (;;) {
    {
      const std::scoped_lock lock(mutex_);
      if (read_only_) return;
      if (!make_room(bytes)) {
        if (!std::exchange(warned_of_pins_, true))
          log_warn(
              "the KV store is full of pages that are in use ({}): others are not kept; a larger --kv-store-size "
              "would keep them",
              format_bytes(options_.size_bytes));
        return;
      }
      add(key, bytes, false);  // counts from now on, so that writes at the same time keep within the size
      ++pins_[key];
    }
    bool full = false;
    const Result<void> written = write_page_file(path(key), options_.shape, job.page, header, full);
    const std::scoped_lock lock(mutex_);
    if (--pins_[key] == 0) pins_.erase(key);
    if (written) {
      entries_[key].ready = true;
      ++statistics_.written_pages;
      statistics_.written_bytes += bytes;
      return;
    }
    erase(key);
    // A full disk may have room once an old page is gone.
    if (!full || !evict_one()) return stop_writing(written.error().message);
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
