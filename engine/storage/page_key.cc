#include "engine/storage/page_key.h"

#include <blake2.h>

#include "base/check.h"
#include "base/format.h"

namespace cpuinfer::storage {
namespace {

class Hash {
 public:
  Hash() { ENSURE(blake2b_init(&state_, sizeof(PageKey::bytes)) == 0, "BLAKE2b takes 32 bytes of output"); }
  Hash& add(std::span<const std::byte> bytes) {
    blake2b_update(&state_, reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
    return *this;
  }
  PageKey finish() {
    PageKey key;
    blake2b_final(&state_, reinterpret_cast<uint8_t*>(key.bytes.data()), key.bytes.size());
    return key;
  }

 private:
  blake2b_state state_;
};

}  // namespace

std::string PageKey::hex() const {
  std::string text;
  for (const std::byte byte : bytes) text += format("{:02x}", static_cast<int>(byte));
  return text;
}

PageKey root_key(std::span<const std::byte> identity) { return Hash().add(identity).finish(); }

PageKey child_key(const PageKey& parent, std::span<const TokenId> tokens) {
  return Hash().add(parent.bytes).add(std::as_bytes(tokens)).finish();
}

}  // namespace cpuinfer::storage
