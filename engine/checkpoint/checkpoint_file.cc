#include "engine/checkpoint/checkpoint_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "base/format.h"
#include "base/types.h"

namespace cpuinfer::checkpoint {
namespace {

std::string error_text(int error) { return std::generic_category().message(error); }

std::unexpected<Error> write_failure(const std::filesystem::path& path, const char* action, int error) {
  const ErrorCode code = error == EACCES || error == EPERM || error == EROFS ? ErrorCode::kPermission
                         : error == ENOENT || error == ENOTDIR               ? ErrorCode::kNotFound
                                                                             : ErrorCode::kRuntime;
  return fail(code, format("{}: {}: {}", path.string(), action, std::generic_category().message(error)));
}

// Writes all of `text` and closes; 0 or the error's number.
int write_and_close(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const ssize_t done = ::write(descriptor, text.data(), text.size());
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) {
      const int error = errno;
      ::close(descriptor);
      return error;
    }
    text.remove_prefix(static_cast<size_t>(done));
  }
  return ::close(descriptor) == 0 ? 0 : errno;
}

}  // namespace

Result<InputFile> InputFile::open(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a pipe without a writer would wait for ever; it has no effect on regular files.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) {
    const int error = errno;
    if (error == EMFILE || error == ENFILE)
      return fail(ErrorCode::kRuntime,
                  format("{}: cannot be opened: {} (raise `ulimit -n`)", path.string(), error_text(error)));
    return fail(ErrorCode::kNotFound, format("{}: cannot be opened: {}", path.string(), error_text(error)));
  }
  InputFile file(path, descriptor, 0);
  struct stat status{};
  if (::fstat(descriptor, &status) != 0)
    return fail(ErrorCode::kRuntime, format("{}: fstat failed: {}", path.string(), error_text(errno)));
  if (!S_ISREG(status.st_mode))
    return fail(ErrorCode::kBadInput, format("{}: expected a regular file, found a {}", path.string(),
                                             S_ISDIR(status.st_mode) ? "directory" : "device, pipe or socket"));
  file.bytes_ = status.st_size;
  return file;
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Result<void> InputFile::read(int64_t offset, int64_t bytes, char* out) const {
  int64_t done = 0;
  while (done < bytes) {
    const ssize_t got = ::pread(descriptor_, out + done, static_cast<size_t>(bytes - done), offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0)
      return fail(ErrorCode::kRuntime,
                  format("{}: cannot read {} bytes at byte {}: {}", path_.string(), bytes - done, offset + done,
                         got < 0 ? error_text(errno) : "the file has become shorter"));
    done += got;
  }
  return {};
}

Result<std::string> read_whole_file(const std::filesystem::path& path, int64_t max_bytes) {
  TRY_ASSIGN(const InputFile file, InputFile::open(path));
  if (file.bytes() > max_bytes)
    return fail(ErrorCode::kBadInput, format("{}: is {} long, expected at most {}", path.string(),
                                             format_bytes(file.bytes()), format_bytes(max_bytes)));
  std::string text(static_cast<size_t>(file.bytes()), '\0');
  TRY(file.read(0, file.bytes(), text.data()));
  return text;
}

Result<void> write_whole_file(const std::filesystem::path& path, std::string_view text) {
  std::error_code ignored;
  const std::filesystem::file_type type = std::filesystem::status(path, ignored).type();
  if (type != std::filesystem::file_type::not_found && type != std::filesystem::file_type::regular) {
    const int descriptor = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (descriptor < 0) return write_failure(path, "cannot write", errno);
    const int error = write_and_close(descriptor, text);
    return error == 0 ? Result<void>{} : write_failure(path, "cannot write", error);
  }
  // Behind a symbolic link, the file and not the link is replaced.
  const std::filesystem::path target =
      type == std::filesystem::file_type::regular ? std::filesystem::canonical(path, ignored) : path;
  std::filesystem::path temporary = target;
  temporary.replace_filename(format(".{}.tmp-{}", target.filename().string(), ::getpid()));
  const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) return write_failure(path, "cannot create a temporary file beside it", errno);
  const int error = write_and_close(descriptor, text);
  if (error == 0 && ::rename(temporary.c_str(), target.c_str()) == 0) return {};
  const auto failure =
      write_failure(path, error != 0 ? "cannot write" : "cannot rename into place", error != 0 ? error : errno);
  ::unlink(temporary.c_str());
  return failure;
}

}  // namespace cpuinfer::checkpoint
