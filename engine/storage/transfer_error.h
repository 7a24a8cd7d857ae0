// How a read or write that did not succeed is described.
#pragma once

#include <cstdint>
#include <string>

namespace cpuinfer::storage {

/// "cannot read 4096 bytes at byte 8192: the file ends at byte 9000". error: of errno; 0: nothing was transferred.
std::string transfer_error(int descriptor, bool write, int64_t offset, int64_t bytes, int error);

}  // namespace cpuinfer::storage
