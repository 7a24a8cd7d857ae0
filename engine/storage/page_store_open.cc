// How a PageStore begins: its directory, what is there, its threads.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/format.h"
#include "base/log.h"
#include "engine/storage/page_store.h"

namespace cpuinfer::storage {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormatFile = "FORMAT";
constexpr std::string_view kFormatText = "cpuinfer KV page store, version 1\n";
// Enough that a disk has always something to do: one transfer is a whole page, which the system cuts into many.
constexpr int kThreads = 8;

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

bool holds_nothing(const fs::path& directory) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, error))
    if (entry.path().filename() != "lost+found") return false;  // which new file systems begin with
  return !error;
}

// That the directory is a store of this version, or a new one.
Result<void> check_format(const fs::path& directory) {
  const fs::path file = directory / kFormatFile;
  const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor >= 0) {
    char text[256];
    const ssize_t got = ::read(descriptor, text, sizeof(text));
    ::close(descriptor);
    if (std::string_view(text, static_cast<size_t>(std::max<ssize_t>(got, 0))) == kFormatText) return {};
    return fail(ErrorCode::kBadInput, format("{}: expected '{}': another version or no KV store of cpuinfer; give "
                                             "another directory, or remove this one",
                                             file.string(), kFormatText.substr(0, kFormatText.size() - 1)));
  }
  if (errno != ENOENT) return failure(file, "cannot be read", errno);
  const fs::path temporary = file.string() + kTemporarySuffix;
  ::unlink(temporary.c_str());
  if (!holds_nothing(directory))
    return fail(ErrorCode::kBadInput, format("{}: is not empty and no KV store (it has no file {}); give another "
                                             "directory",
                                             directory.string(), kFormatFile));
  const int made = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  const bool written =
      made >= 0 && ::write(made, kFormatText.data(), kFormatText.size()) == static_cast<ssize_t>(kFormatText.size()) &&
      ::fsync(made) == 0 && ::rename(temporary.c_str(), file.c_str()) == 0;
  const int error = errno;
  if (made >= 0) ::close(made);
  if (written) return {};
  ::unlink(temporary.c_str());
  return failure(file, "cannot make a KV store", error);
}

}  // namespace

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
  TRY(store->start_threads());
  return store;
}

Result<void> PageStore::start_threads() {
  // Signals are for the threads that expect them.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::string reason;
  try {
    for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { work(); });
  } catch (const std::system_error& error) {
    reason = error.what();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  // Some threads do the work of all, only with fewer pages at a time.
  if (threads_.empty()) return fail(ErrorCode::kRuntime, format("no thread for the KV store can be had: {}", reason));
  return {};
}

Result<void> PageStore::prepare_directory() {
  const fs::path& directory = options_.directory;
  std::error_code error;
  const bool made = fs::create_directories(directory, error);
  if (error) return failure(directory, "cannot make the directory of the KV store", error.value());
  // What people ask is in it.
  if (made) fs::permissions(directory, fs::perms::owner_all, error);
  lock_ = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ < 0) return failure(directory, "cannot open the directory of the KV store", errno);
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return failure(directory, "cannot lock the KV store", errno);
    return fail(ErrorCode::kRuntime, format("{}: another process uses this KV store; wait for it, or give another "
                                            "directory",
                                            directory.string()));
  }
  struct stat status;
  if (::fstat(lock_, &status) == 0 && (status.st_mode & (S_IWGRP | S_IWOTH)) != 0)
    log_warn("{}: others may write to this KV store, and could plant pages: chmod 700 keeps them out",
             directory.string());
  TRY(check_format(directory));
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
  fs::directory_iterator entries(options_.directory / "pages", error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const fs::directory_entry& entry = *entries;
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
  if (error)
    log_warn("{}: cannot be listed: {}; pages there are not found", (options_.directory / "pages").string(),
             error.message());
  const std::scoped_lock lock(mutex_);
  for (const Found& page : found) add(page.key, page.bytes, true, order_.end());
  limit_bytes_ = options_.size_bytes;
  if (limit_bytes_ == 0) {
    struct statvfs disk;
    limit_bytes_ = INT64_MAX;
    if (::statvfs(options_.directory.c_str(), &disk) == 0)
      limit_bytes_ =
          statistics_.bytes + static_cast<int64_t>(disk.f_bavail) / 20 * 19 * static_cast<int64_t>(disk.f_frsize);
  }
  if (!read_only_) make_room(nullptr);
}

}  // namespace cpuinfer::storage
