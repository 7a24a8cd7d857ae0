// Layout: "\x93NUMPY", version 1 0, little-endian uint16 length of the header, the header (a Python dictionary, padded
// with spaces and ended by a newline so that the data begins at a multiple of 64), the data.
// Specification: numpy.lib.format, "Format Version 1.0".
#include "tools/npy.h"

#include <fcntl.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/format.h"
#include "base/types.h"

namespace cpuinfer::tools {
namespace {

static_assert(std::endian::native == std::endian::little, "the values are written as they are in memory");

std::unexpected<Error> system_failure(const std::filesystem::path& path, const char* action, int error) {
  const ErrorCode code = error == EACCES || error == EPERM || error == EROFS ? ErrorCode::kPermission
                         : error == ENOENT || error == ENOTDIR               ? ErrorCode::kNotFound
                                                                             : ErrorCode::kRuntime;
  return fail(code, format("{}: {}: {}", path.string(), action, std::generic_category().message(error)));
}

}  // namespace

Result<NpyWriter> NpyWriter::create(const std::filesystem::path& path, int64_t rows, int64_t columns) {
  std::filesystem::path temporary = path;
  temporary.replace_filename(format(".{}.tmp-{}", path.filename().string(), ::getpid()));
  const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) return system_failure(path, "cannot create a temporary file beside it", errno);
  NpyWriter writer(path, std::move(temporary), descriptor, rows * columns * static_cast<int64_t>(sizeof(float)));

  std::string dictionary = format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows, columns);
  constexpr size_t kPrefix = 10;
  dictionary.resize(round_up<size_t>(kPrefix + dictionary.size() + 1, 64) - kPrefix - 1, ' ');
  dictionary += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(dictionary.size() & 0xff);
  header += static_cast<char>(dictionary.size() >> 8);
  header += dictionary;
  TRY(writer.write(header.data(), header.size()));
  return writer;
}

NpyWriter::NpyWriter(NpyWriter&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      bytes_left_(other.bytes_left_) {}

NpyWriter::~NpyWriter() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

Result<void> NpyWriter::write(const void* data, size_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = ::write(descriptor_, next, bytes);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return system_failure(path_, "cannot write", errno);
    next += done;
    bytes -= static_cast<size_t>(done);
  }
  return {};
}

Result<void> NpyWriter::append(std::span<const float> values) {
  bytes_left_ -= static_cast<int64_t>(values.size_bytes());
  ENSURE(bytes_left_ >= 0, "no more rows are appended than announced");
  return write(values.data(), values.size_bytes());
}

Result<void> NpyWriter::finish() {
  ENSURE(bytes_left_ == 0, "all rows are appended before finish()");
  if (::fsync(descriptor_) != 0) return system_failure(path_, "cannot sync", errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) return system_failure(path_, "cannot rename into place", errno);
  ::close(std::exchange(descriptor_, -1));
  return {};
}

}  // namespace cpuinfer::tools
