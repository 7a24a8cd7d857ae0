#include "engine/storage/direct_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>

#include "base/format.h"
#include "base/types.h"
#include "engine/storage/transfer_error.h"

namespace cpuinfer::storage {
namespace {

std::string error_text(int error) { return std::generic_category().message(error); }

ErrorCode open_error_code(FileAccess access, int error) {
  const bool refused = error == EACCES || error == EPERM || error == EROFS;
  if (refused && access != FileAccess::kRead) return ErrorCode::kPermission;
  return refused || error == ENOENT || error == ENOTDIR ? ErrorCode::kNotFound : ErrorCode::kRuntime;
}

}  // namespace

Result<DirectFile> DirectFile::open(const std::filesystem::path& path, FileAccess access, bool direct) {
  // O_NONBLOCK: opening a pipe without a writer would wait for ever.
  const int flags = O_CLOEXEC | O_NONBLOCK |
                    (access == FileAccess::kRead        ? O_RDONLY
                     : access == FileAccess::kReadWrite ? O_RDWR
                                                        : O_RDWR | O_CREAT | O_EXCL);
  int descriptor = ::open(path.c_str(), flags | (direct ? O_DIRECT : 0), 0666);
  if (descriptor < 0 && direct && errno == EINVAL) {
    direct = false;
    // The name may have been made before the refusal.
    descriptor = ::open(path.c_str(), flags & ~O_EXCL, 0666);
  }
  if (descriptor < 0) {
    const int error = errno;
    return fail(open_error_code(access, error),
                format("{}: cannot be {}: {}", path.string(), access == FileAccess::kCreate ? "created" : "opened",
                       error_text(error)));
  }
  DirectFile file(path, descriptor, direct);
  struct stat status{};
  if (::fstat(descriptor, &status) != 0)
    return fail(ErrorCode::kRuntime, format("{}: fstat failed: {}", path.string(), error_text(errno)));
  if (!S_ISREG(status.st_mode))
    return fail(ErrorCode::kBadInput, format("{}: expected a regular file, found a {}", path.string(),
                                             S_ISDIR(status.st_mode) ? "directory" : "device, pipe or socket"));
  // io_uring of kernels before 6.5 takes it at its word: where a disk cannot promise not to wait (dm-crypt), every
  // request ends with EAGAIN.
  if (const int now = ::fcntl(descriptor, F_GETFL); now >= 0) ::fcntl(descriptor, F_SETFL, now & ~O_NONBLOCK);
  return file;
}

DirectFile::~DirectFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Result<int64_t> DirectFile::bytes() const {
  struct stat status{};
  if (::fstat(descriptor_, &status) != 0)
    return fail(ErrorCode::kRuntime, format("{}: fstat failed: {}", path_.string(), error_text(errno)));
  return status.st_size;
}

Result<void> DirectFile::read(int64_t offset, std::span<std::byte> out) const {
  const int64_t bytes = static_cast<int64_t>(out.size());
  for (int64_t done = 0; done < bytes;) {
    const ssize_t got = ::pread(descriptor_, out.data() + done, static_cast<size_t>(bytes - done), offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0)
      return fail(ErrorCode::kRuntime,
                  format("{}: {}", path_.string(),
                         transfer_error(descriptor_, false, offset + done, bytes - done, got < 0 ? errno : 0)));
    done += got;
  }
  return {};
}

Result<void> DirectFile::write(int64_t offset, std::span<const std::byte> bytes) const {
  const int64_t size = static_cast<int64_t>(bytes.size());
  for (int64_t done = 0; done < size;) {
    const ssize_t put = ::pwrite(descriptor_, bytes.data() + done, static_cast<size_t>(size - done), offset + done);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0)
      return fail(ErrorCode::kRuntime,
                  format("{}: {}", path_.string(),
                         transfer_error(descriptor_, true, offset + done, size - done, put < 0 ? errno : 0)));
    done += put;
  }
  return {};
}

Result<void> DirectFile::reserve(int64_t bytes) const {
  // Not posix_fallocate: where the file system cannot do it, that writes zeros for minutes.
  int error;
  do {
    error = ::fallocate(descriptor_, 0, 0, bytes) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error == EOPNOTSUPP || error == ENOSYS) error = ::ftruncate(descriptor_, bytes) == 0 ? 0 : errno;
  if (error == 0) return {};
  return fail(ErrorCode::kRuntime,
              format("{}: no room for {} on its disk: {}", path_.string(), format_bytes(bytes), error_text(error)));
}

Result<void> DirectFile::sync() const {
  int error;
  do {
    error = ::fsync(descriptor_) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error == 0) return {};
  return fail(ErrorCode::kRuntime, format("{}: fsync failed: {}", path_.string(), error_text(error)));
}

}  // namespace cpuinfer::storage
