#include "engine/storage/open_files.h"

#include <sys/resource.h>

#include <algorithm>

#include "base/format.h"

namespace cpuinfer::storage {

Result<void> allow_open_files(int64_t count) {
  constexpr int64_t kUsualFiles = 512;  // standard streams, the files of a checkpoint, libraries
  const rlim_t wanted = static_cast<rlim_t>(count + kUsualFiles);
  rlimit limit;
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return {};
  if (limit.rlim_max < wanted) {
    return fail(ErrorCode::kDoesNotFit,
                format("{} files must be open at a time and this process may have {}: raise the limit (ulimit -Hn, or "
                       "LimitNOFILE= of the service)",
                       static_cast<int64_t>(wanted), static_cast<int64_t>(limit.rlim_max)));
  }
  limit.rlim_cur = wanted;
  if (::setrlimit(RLIMIT_NOFILE, &limit) == 0) return {};
  return fail(
      ErrorCode::kDoesNotFit,
      format("{} files must be open at a time and the system does not let this process raise its limit: raise it "
             "(ulimit -n)",
             static_cast<int64_t>(wanted)));
}

}  // namespace cpuinfer::storage
