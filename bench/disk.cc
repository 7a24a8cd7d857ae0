#include "bench/disk.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/format.h"
#include "base/types.h"
#include "bench/timing.h"
#include "numa/memory.h"
#include "numa/team.h"

namespace cpuinfer::bench {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kBlocks[] = {1_MiB, 4_MiB, 8_MiB};
constexpr int kReaders[] = {1, 2, 4, 8};
constexpr int64_t kLargestBlock = 8_MiB;
constexpr double kMostSecondsOfWriting = 2;

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  int get() const { return number_; }

 private:
  int number_ = -1;
};

struct OpenFile {
  Descriptor descriptor;
  int64_t bytes = 0;  // whole blocks of the largest size
};

std::unexpected<Error> system_error(std::string_view what, const fs::path& path, int error) {
  const ErrorCode code = error == ENOENT || error == ENOTDIR                   ? ErrorCode::kNotFound
                         : error == EACCES || error == EPERM || error == EROFS ? ErrorCode::kPermission
                                                                               : ErrorCode::kRuntime;
  return fail(code, format("cannot {} {}: {}", what, path.string(), std::strerror(error)));
}

/// Reads by direct I/O from now on, or, if the file system has none, says why.
bool make_direct(int descriptor) {
  const int flags = fcntl(descriptor, F_GETFL);
  return flags >= 0 && fcntl(descriptor, F_SETFL, flags | O_DIRECT) == 0;
}

bool lies_in_memory(int descriptor) {
  struct statfs system{};
  return fstatfs(descriptor, &system) == 0 && (system.f_type == TMPFS_MAGIC || system.f_type == RAMFS_MAGIC);
}

Result<std::vector<OpenFile>> open_model(const fs::path& directory, DiskFigure& figure) {
  std::vector<fs::path> paths;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error))
    if (it->path().extension() == ".safetensors" || it->path().filename() == "weights.packed")
      paths.push_back(it->path());
  if (error) return system_error("read the directory", directory, error.value());
  std::sort(paths.begin(), paths.end());
  std::vector<OpenFile> files;
  int64_t total = 0;
  for (const fs::path& path : paths) {
    // O_NONBLOCK: a pipe without a writer would be waited for; it is no bytes long then.
    OpenFile file{Descriptor(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)), 0};
    struct stat status{};
    if (file.descriptor.get() < 0 || fstat(file.descriptor.get(), &status) != 0)
      return system_error("open", path, errno);
    total += status.st_size;
    file.bytes = status.st_size / kLargestBlock * kLargestBlock;
    if (file.bytes > 0) files.push_back(std::move(file));
  }
  const bool packed = paths.size() == 1 && paths[0].extension() == ".packed";
  figure.what = format("{} {} file{} of {} ({})", paths.size(), packed ? "packed" : "safetensors",
                       paths.size() == 1 ? "" : "s", directory.string(), format_bytes(total));
  if (files.empty())
    return fail(ErrorCode::kNotFound, format("{}: no *.safetensors file of {} or more to read; give "
                                             "--disk with a directory on the disk to be "
                                             "measured instead",
                                             directory.string(), format_bytes(kLargestBlock)));
  return files;
}

/// Something that no disk or file system shrinks: xorshift64 (Marsaglia 2003).
void fill_with_noise(numa::NodeBuffer& buffer) {
  uint64_t state = 0x9e3779b97f4a7c15u;
  auto* words = buffer.as<uint64_t>();
  for (int64_t i = 0; i < buffer.size() / 8; ++i) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    words[i] = state;
  }
}

Result<std::vector<OpenFile>> make_temporary(const numa::Topology& topology, const DiskOptions& options,
                                             const Watch& watch, DiskFigure& figure) {
  std::string name = (options.directory / "cpuinfer-bench-XXXXXX").string();
  OpenFile file{Descriptor(mkostemp(name.data(), O_CLOEXEC)), 0};
  if (file.descriptor.get() < 0) return system_error("make a file in", options.directory, errno);
  unlink(name.c_str());
  TRY_ASSIGN(numa::NodeBuffer noise, numa::NodeBuffer::allocate(kLargestBlock, 0, topology));
  fill_with_noise(noise);
  const bool direct = make_direct(file.descriptor.get());
  const Clock::time_point start = Clock::now();
  while (file.bytes < options.temporary_bytes && seconds_since(start) < kMostSecondsOfWriting) {
    TRY(watch.check(0));
    // Every block differs, should the file system look for equal ones.
    noise.as<uint64_t>()[0] = static_cast<uint64_t>(file.bytes);
    const ssize_t written = pwrite(file.descriptor.get(), noise.data(), kLargestBlock, file.bytes);
    if (written != kLargestBlock) {
      // A disk that has less room than that still has a speed.
      if (file.bytes > 0) break;
      return system_error("write to a temporary file in", options.directory, written < 0 ? errno : ENOSPC);
    }
    file.bytes += kLargestBlock;
  }
  if (!direct || lies_in_memory(file.descriptor.get())) fsync(file.descriptor.get());
  figure.what = format("a temporary file in {} ({})", options.directory.string(), format_bytes(file.bytes));
  std::vector<OpenFile> files;
  files.push_back(std::move(file));
  return files;
}

/// The blocks of all files in one row.
class BlockSequence {
 public:
  static constexpr int kEndOfFile = -1;  // beside the values of errno

  explicit BlockSequence(const std::vector<OpenFile>& files) : files_(files) {
    for (const OpenFile& file : files) bytes_ += file.bytes;
  }
  int64_t bytes() const { return bytes_; }

  /// Reads the block at `position`, a multiple of `block`, going around the end. 0, errno or kEndOfFile.
  int read(int64_t position, int64_t block, std::byte* to) const {
    int64_t at = position % bytes_;
    size_t file = 0;
    while (at >= files_[file].bytes) at -= files_[file++].bytes;
    for (int64_t done = 0; done < block;) {
      const ssize_t n = pread(files_[file].descriptor.get(), to + done, static_cast<size_t>(block - done), at + done);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return n < 0 ? errno : kEndOfFile;
      done += n;
    }
    return 0;
  }

 private:
  const std::vector<OpenFile>& files_;
  int64_t bytes_ = 0;
};

}  // namespace

Result<DiskFigure> measure_disk(const numa::Topology& topology, const DiskOptions& options, const Watch& watch) {
  DiskFigure figure;
  std::vector<OpenFile> files;
  if (options.model.empty()) {
    TRY_ASSIGN(files, make_temporary(topology, options, watch, figure));
  } else {
    TRY_ASSIGN(files, open_model(options.model, figure));
  }
  figure.cache = "O_DIRECT";
  for (const OpenFile& file : files) {
    const int descriptor = file.descriptor.get();
    if (lies_in_memory(descriptor)) {
      figure.direct = false;
      figure.cache = "the file system lies in memory: this is no disk's speed";
    } else if (!make_direct(descriptor)) {
      figure.direct = false;
      figure.cache = "the file system refuses O_DIRECT: the cache was dropped once before each entry";
    }
  }

  const BlockSequence sequence(files);
  constexpr int kMostReaders = 8;
  TRY_ASSIGN(numa::NodeBuffer buffer, numa::NodeBuffer::allocate(kMostReaders * kLargestBlock, 0, topology));
  const double entries = static_cast<double>(std::size(kBlocks) * std::size(kReaders));
  const auto most_bytes = static_cast<int64_t>(static_cast<double>(options.most_bytes) / entries);
  int64_t position = 0;
  for (const int readers : kReaders) {
    TRY_ASSIGN(const std::unique_ptr<numa::Team> team, numa::Team::create(topology, {.threads = readers, .nodes = 1}));
    for (const int64_t block : kBlocks) {
      TRY(watch.check(static_cast<double>(figure.entries.size()) / entries));
      if (!figure.direct)
        for (const OpenFile& file : files) posix_fadvise(file.descriptor.get(), 0, 0, POSIX_FADV_DONTNEED);
      std::atomic<int64_t> next{0};
      std::atomic<int64_t> bytes{0};
      std::atomic<int> failure{0};
      const double seconds = seconds_of([&] {
        team->run([&](numa::Worker& worker) {
          std::byte* const to = buffer.data() + worker.rank * kLargestBlock;
          const Clock::time_point start = Clock::now();
          do {
            const int64_t at = next.fetch_add(block);
            // Each reader reads at least once, whatever the limits are.
            if (at >= most_bytes && at >= worker.count * block) return;
            if (const int error = sequence.read(position + at, block, to); error != 0) {
              failure = error;
              return;
            }
            bytes += block;
          } while (seconds_since(start) < options.seconds / entries && !watch.cancelled());
        });
      });
      if (failure != 0)
        return fail(ErrorCode::kRuntime, format("reading {} failed: {}", figure.what,
                                                failure == BlockSequence::kEndOfFile ? "a file has become shorter"
                                                                                     : std::strerror(failure)));
      figure.entries.push_back({readers, block, static_cast<double>(bytes) / seconds});
      position = round_up(position + bytes.load(), kLargestBlock) % sequence.bytes();
    }
  }
  TRY(watch.check(1));
  const auto slower = [](const DiskEntry& a, const DiskEntry& b) { return a.bytes_per_second < b.bytes_per_second; };
  figure.best = static_cast<size_t>(std::max_element(figure.entries.begin(), figure.entries.end(), slower) -
                                    figure.entries.begin());
  return figure;
}

}  // namespace cpuinfer::bench
