#include "engine/storage/transfer_error.h"

#include <sys/stat.h>

#include <cerrno>
#include <system_error>

#include "base/format.h"

namespace cpuinfer::storage {

std::string transfer_error(int descriptor, bool write, int64_t offset, int64_t bytes, int error) {
  std::string reason = error == 0 ? "nothing was transferred" : std::generic_category().message(error);
  // Beyond the end O_DIRECT says EINVAL where the end is in the middle of a block.
  struct stat status{};
  if (!write && (error == 0 || error == EINVAL) && ::fstat(descriptor, &status) == 0 && status.st_size < offset + bytes)
    reason = format("the file ends at byte {}", status.st_size);
  return format("cannot {} {} bytes at byte {}: {}", write ? "write" : "read", bytes, offset, reason);
}

}  // namespace cpuinfer::storage
