// How many files this process may have open.
#pragma once

#include <cstdint>

#include "base/result.h"

namespace cpuinfer::storage {

/// Room for `count` open files beside the usual ones: raises this process's own limit as far as the system lets it.
/// Errors: kDoesNotFit, with both numbers and what to do.
Result<void> allow_open_files(int64_t count);

}  // namespace cpuinfer::storage
