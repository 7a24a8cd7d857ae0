#include "engine/checkpoint/tensor_reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/check.h"

namespace cpuinfer::checkpoint {
namespace {

// The file that `descriptor` has open, once more, past the page cache. -1 if the file system cannot do that, or if the
// name belongs to another file by now.
int open_direct(const SafetensorsFile& file) {
  const int direct = ::open(file.path().c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT);
  if (direct < 0) return -1;
  struct stat first{}, second{};
  if (::fstat(file.descriptor(), &first) == 0 && ::fstat(direct, &second) == 0 && first.st_dev == second.st_dev &&
      first.st_ino == second.st_ino)
    return direct;
  ::close(direct);
  return -1;
}

}  // namespace

TensorReader::TensorReader(const Checkpoint& checkpoint, PageCache page_cache)
    : checkpoint_(checkpoint), page_cache_(page_cache), files_(static_cast<size_t>(checkpoint.file_count())) {
  if (page_cache == PageCache::kFill) return;
  for (int i = 0; i < checkpoint.file_count(); ++i) {
    const SafetensorsFile& source = checkpoint.file(i);
    File& file = files_[static_cast<size_t>(i)];
    file.direct = open_direct(source);
    file.mapping_bytes = static_cast<size_t>(source.file_bytes());
    file.mapping = ::mmap(nullptr, file.mapping_bytes, PROT_READ, MAP_SHARED, source.descriptor(), 0);
    if (file.mapping == MAP_FAILED) file.mapping = nullptr;
  }
}

TensorReader::~TensorReader() {
  for (const File& file : files_) {
    if (file.direct >= 0) ::close(file.direct);
    if (file.mapping != nullptr) ::munmap(file.mapping, file.mapping_bytes);
  }
}

// Are all pages of [begin, end) in the page cache? For files of other users the kernel says yes without looking: those
// then go through the page cache, which is slower and nothing worse.
bool TensorReader::cached(const File& file, int64_t begin, int64_t end) const {
  if (file.mapping == nullptr) return false;
  const int64_t page = ::sysconf(_SC_PAGESIZE);
  constexpr int64_t kPages = 1024;
  unsigned char resident[kPages];
  for (int64_t at = begin / page * page; at < end; at += kPages * page) {
    const int64_t pages = std::min(kPages, (end - at + page - 1) / page);
    if (::mincore(static_cast<char*>(file.mapping) + at, static_cast<size_t>(pages * page), resident) != 0)
      return false;
    if (!std::all_of(resident, resident + pages, [](unsigned char flags) { return (flags & 1) != 0; })) return false;
  }
  return true;
}

// Reads at least [begin, end), from the multiple of kAlignment before `begin` on. False: it did not all arrive (an
// error, a short file, a file system with a larger alignment), and the page cache must do it or say why not.
bool TensorReader::read_direct(const File& file, int64_t begin, int64_t end, std::byte* buffer) const {
  if (file.direct < 0) return false;
  const int64_t first = begin / kAlignment * kAlignment;
  const int64_t length = round_up(end - first, kAlignment);
  for (int64_t done = 0; done < end - first;) {
    const ssize_t got = ::pread(file.direct, buffer + done, static_cast<size_t>(length - done), first + done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    done += got;
  }
  return true;
}

Result<const std::byte*> TensorReader::read(const TensorRef& tensor, int64_t offset, int64_t bytes,
                                            std::byte* buffer) const {
  ENSURE(offset >= 0 && bytes >= 0 && bytes <= tensor.bytes - offset, "the bytes lie inside the tensor");
  const File& file = files_[static_cast<size_t>(tensor.file)];
  const int64_t begin = tensor.file_offset + offset;
  const bool drop = page_cache_ == PageCache::kSpare && !cached(file, begin, begin + bytes);
  if (drop && read_direct(file, begin, begin + bytes, buffer)) {
    direct_bytes_.fetch_add(bytes, std::memory_order_relaxed);
    return buffer + begin % kAlignment;
  }
  TRY(checkpoint_.read(tensor, offset, {buffer, static_cast<size_t>(bytes)}));
  if (drop) checkpoint_.file(tensor.file).drop_pages(begin, bytes);
  return buffer;
}

}  // namespace cpuinfer::checkpoint
