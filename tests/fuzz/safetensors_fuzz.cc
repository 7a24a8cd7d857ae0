// The safetensors header parser on hostile bytes. What it accepts must keep the promises of safetensors.h.
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "base/check.h"
#include "engine/checkpoint/safetensors.h"

namespace {

using cpuinfer::checkpoint::SafetensorsEntry;

void parse(std::string_view header, int64_t file_bytes) {
  const auto entries = cpuinfer::checkpoint::parse_safetensors_header(header, file_bytes, "fuzz");
  if (!entries) {
    ENSURE(entries.error().message.starts_with("fuzz: "), "a message names the file");
    return;
  }
  int64_t covered = 8 + static_cast<int64_t>(header.size());
  for (const SafetensorsEntry& entry : *entries) {
    ENSURE(!entry.name.empty(), "a tensor has a name");
    ENSURE(entry.file_offset == covered, "tensors cover the data in order");
    ENSURE(entry.bytes >= 0 && entry.bytes <= file_bytes - covered, "a tensor lies inside the file");
    int64_t bytes = cpuinfer::dtype_bytes(entry.dtype);
    for (const int64_t size : entry.shape)
      ENSURE(size >= 0 && !__builtin_mul_overflow(bytes, size, &bytes), "a shape's product does not overflow");
    ENSURE(bytes == entry.bytes, "a shape needs the bytes it has");
    covered += entry.bytes;
  }
  ENSURE(covered == file_bytes, "tensors cover all the data");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Once as a file, with its length field.
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const int64_t file_bytes = static_cast<int64_t>(size);
  const auto length =
      cpuinfer::checkpoint::safetensors_header_length({data, size < 8 ? size : size_t{8}}, file_bytes, "fuzz");
  if (length) {
    ENSURE(*length >= 0 && *length <= file_bytes - 8, "the header lies inside the file");
    parse(text.substr(8, static_cast<size_t>(*length)), file_bytes);
  }
  // Once as a header behind which lie as many bytes as the first 6 bytes say: mutations reach the parser more often.
  if (size >= 6) {
    uint64_t data_bytes = 0;
    std::memcpy(&data_bytes, data, 6);
    parse(text.substr(6), 8 + file_bytes - 6 + static_cast<int64_t>(data_bytes));
  }
  return 0;
}
