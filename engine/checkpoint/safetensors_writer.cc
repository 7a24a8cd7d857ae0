// write_safetensors: see safetensors.h; the layout is described in safetensors.cc.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/format.h"
#include "base/json.h"
#include "base/text.h"
#include "engine/checkpoint/safetensors.h"
#include "engine/checkpoint/safetensors_name.h"

namespace cpuinfer::checkpoint {
namespace {

constexpr int64_t kPieceBytes = 4_MiB;

std::unexpected<Error> system_failure(const std::filesystem::path& path, const char* action, int error) {
  const bool refused = error == EACCES || error == EPERM || error == EROFS;
  const ErrorCode code = refused           ? ErrorCode::kPermission
                         : error == ENOENT ? ErrorCode::kNotFound
                                           : ErrorCode::kRuntime;
  return fail(code, format("{}: {} failed: {}", path.string(), action, std::generic_category().message(error)));
}

// The unfinished file; removed again unless finish() succeeds.
class TemporaryFile {
 public:
  static Result<TemporaryFile> create(const std::filesystem::path& target) {
    // Unique among the processes of this machine and the threads of this process; a leftover of a killed process
    // with the same number makes O_EXCL fail, and the next number is taken.
    static std::atomic<int> counter{0};
    for (;;) {
      std::filesystem::path path = target;
      path.replace_filename(format(".{}.tmp-{}-{}", target.filename().string(), ::getpid(), counter++));
      const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (descriptor >= 0) return TemporaryFile(target, std::move(path), descriptor);
      if (errno != EEXIST) return system_failure(target, "creating a temporary file beside it", errno);
    }
  }
  TemporaryFile(TemporaryFile&& other) noexcept
      : target_(std::move(other.target_)),
        path_(std::move(other.path_)),
        descriptor_(std::exchange(other.descriptor_, -1)) {}
  ~TemporaryFile() {
    if (descriptor_ < 0) return;
    ::close(descriptor_);
    ::unlink(path_.c_str());
  }

  Result<void> write(const void* data, size_t bytes) {
    const char* next = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t done = ::write(descriptor_, next, bytes);
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) return system_failure(target_, "writing", errno);
      next += done;
      bytes -= static_cast<size_t>(done);
    }
    return {};
  }

  Result<void> finish() {
    if (::fsync(descriptor_) != 0) return system_failure(target_, "fsync", errno);
    if (::rename(path_.c_str(), target_.c_str()) != 0) return system_failure(target_, "renaming into place", errno);
    ::close(std::exchange(descriptor_, -1));
    // The rename is on disk only when the directory is. File systems that cannot sync directories say EINVAL.
    const std::filesystem::path parent = target_.has_parent_path() ? target_.parent_path() : ".";
    const int directory = ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) return system_failure(parent, "opening the directory", errno);
    const int error = ::fsync(directory) == 0 ? 0 : errno;
    ::close(directory);
    if (error != 0 && error != EINVAL) return system_failure(parent, "fsync of the directory", error);
    return {};
  }

 private:
  TemporaryFile(std::filesystem::path target, std::filesystem::path path, int descriptor)
      : target_(std::move(target)), path_(std::move(path)), descriptor_(descriptor) {}

  std::filesystem::path target_, path_;
  int descriptor_ = -1;
};

struct Layout {
  std::string header;                 // with its length field
  std::vector<int64_t> tensor_bytes;  // [tensors]
};

Result<Layout> lay_out(const std::filesystem::path& path, std::span<const TensorSource> tensors) {
  const auto unusable = [&](const TensorSource& tensor, std::string_view why) {
    return fail(ErrorCode::kUsage, format("{}: tensor {}: {}", path.string(), in_quotes(tensor.name), why));
  };
  std::vector<std::string_view> names{kMetadataName};
  for (const TensorSource& tensor : tensors) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  if (const auto twin = std::adjacent_find(names.begin(), names.end()); twin != names.end())
    return fail(ErrorCode::kUsage,
                format("{}: two tensors have the name {}, or it is reserved", path.string(), in_quotes(*twin)));

  Layout layout;
  int64_t end = 0;
  std::string json = R"({"__metadata__":{"format":"pt"})";
  for (const TensorSource& tensor : tensors) {
    if (const auto fault = tensor_name_fault(tensor.name); !fault.empty()) return unusable(tensor, fault);
    const std::string name = to_json_text(Json(tensor.name));  // replaces invalid UTF-8
    if (parse_json(name, "name").value().as_string() != tensor.name) return unusable(tensor, "the name is not UTF-8");
    if (tensor.shape.size() > kMaxRank)
      return unusable(tensor, format("has {} dimensions, expected at most {}", tensor.shape.size(), kMaxRank));
    for (const int64_t size : tensor.shape)
      if (size < 0) return unusable(tensor, format("shape [{}]: negative size", fmt::join(tensor.shape, ", ")));
    const std::optional<int64_t> bytes = tensor_bytes(tensor.dtype, tensor.shape);
    const int64_t begin = end;
    if (!bytes || __builtin_add_overflow(begin, *bytes, &end))
      return unusable(tensor, format("shape [{}]: the size does not fit 63 bits", fmt::join(tensor.shape, ", ")));
    layout.tensor_bytes.push_back(*bytes);
    json += format(R"(,{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", name, dtype_name(tensor.dtype),
                   fmt::join(tensor.shape, ","), begin, end);
  }
  json += '}';
  json.resize(round_up<size_t>(json.size(), 8), ' ');  // the reference implementation aligns the data to 8 bytes
  if (static_cast<int64_t>(json.size()) > kMaxSafetensorsHeaderBytes)
    return fail(ErrorCode::kUsage, format("{}: the header would be {} bytes long, the limit is {}; write several files",
                                          path.string(), json.size(), kMaxSafetensorsHeaderBytes));
  const uint64_t length = json.size();
  layout.header.resize(sizeof(length));
  std::memcpy(layout.header.data(), &length, sizeof(length));
  layout.header += json;
  return layout;
}

}  // namespace

TensorSource tensor_from_bytes(std::string name, DType dtype, std::vector<int64_t> shape,
                               std::span<const std::byte> bytes) {
  return {std::move(name), dtype, std::move(shape), [bytes](int64_t offset, std::span<std::byte> out) {
            ENSURE(static_cast<size_t>(offset) + out.size() <= bytes.size(), "the bytes fill the tensor's shape");
            const auto piece = bytes.subspan(static_cast<size_t>(offset), out.size());
            std::copy(piece.begin(), piece.end(), out.begin());
          }};
}

Result<void> write_safetensors(const std::filesystem::path& path, std::span<const TensorSource> tensors) {
  TRY_ASSIGN(const Layout layout, lay_out(path, tensors));
  TRY_ASSIGN(TemporaryFile file, TemporaryFile::create(path));
  TRY(file.write(layout.header.data(), layout.header.size()));
  std::vector<std::byte> piece;
  for (size_t i = 0; i < tensors.size(); ++i) {
    for (int64_t offset = 0; offset < layout.tensor_bytes[i]; offset += kPieceBytes) {
      piece.resize(static_cast<size_t>(std::min(kPieceBytes, layout.tensor_bytes[i] - offset)));
      tensors[i].fill(offset, piece);
      TRY(file.write(piece.data(), piece.size()));
    }
  }
  return file.finish();
}

}  // namespace cpuinfer::checkpoint
