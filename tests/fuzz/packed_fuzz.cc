// The table of a file of packed weights, behind a header that fits it: what a checksum does not keep out.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/format.h"
#include "engine/load/packed_file.h"
#include "engine/storage/digest.h"

using namespace cpuinfer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // packed_file.h has the bytes.
  const std::string table(reinterpret_cast<const char*>(data), size);
  std::vector<char> file(round_up<size_t>(32 + size, 4096) + 4096);
  const uint32_t version = load::kPackedLayoutVersion;
  const uint64_t bytes = size, hash = storage::xxh3_64(table);
  std::memcpy(file.data(), "CPINFPKW", 8);
  std::memcpy(file.data() + 8, &version, sizeof(version));
  std::memcpy(file.data() + 16, &bytes, sizeof(bytes));
  std::memcpy(file.data() + 24, &hash, sizeof(hash));
  std::memcpy(file.data() + 32, table.data(), table.size());
  const int descriptor = ::memfd_create("fuzz", MFD_CLOEXEC);
  ENSURE(descriptor >= 0, "a file in memory");
  ENSURE(::write(descriptor, file.data(), file.size()) == static_cast<ssize_t>(file.size()), "it can be written");
  if (const auto opened = load::PackedFile::open(format("/proc/self/fd/{}", descriptor)))
    ENSURE(opened->bytes() >= 0 && opened->data_offset() + opened->bytes() <= static_cast<int64_t>(file.size()),
           "all that the table names is in the file");
  ::close(descriptor);
  return 0;
}
