#include "engine/model/kv_cache.h"

#include <cstring>

#include "base/check.h"
#include "base/format.h"
#include "kernels/pack.h"

namespace cpuinfer::model {
namespace {

int64_t half_elements(const ModelConfig& config) {
  return kernels::page_half_elements(round_up(config.head_dim, kernels::kTileTerms));
}

}  // namespace

int64_t KvCache::page_bytes(const ModelConfig& config) {
  return int64_t{config.layers} * config.kv_heads * 2 * half_elements(config) * static_cast<int64_t>(sizeof(bf16));
}

int KvCache::pages_for(int64_t tokens) { return static_cast<int>(ceil_div(tokens, int64_t{kernels::kLeafTokens})); }

Result<KvCache> KvCache::create(const ModelConfig& config, int pages, const numa::Topology& topology) {
  KvCache cache;
  TRY_ASSIGN(cache.memory_, numa::NodeBuffer::allocate(page_bytes(config) * pages, 0, topology));
  cache.base_ = cache.memory_.as<bf16>();
  cache.layers_ = config.layers;
  cache.kv_heads_ = config.kv_heads;
  cache.head_dim_padded_ = round_up(config.head_dim, kernels::kTileTerms);
  cache.pages_ = pages;
  cache.half_ = half_elements(config);
  for (int page = pages - 1; page >= 0; --page) cache.free_.push_back(page);
  return cache;
}

Result<int> KvCache::allocate() {
  if (free_.empty()) {
    return fail(ErrorCode::kDoesNotFit,
                format("all {} KV pages ({} tokens) are in use", pages_, int64_t{pages_} * kernels::kLeafTokens));
  }
  const int page = free_.back();
  free_.pop_back();
  for (int layer = 0; layer < layers_; ++layer)
    for (int head = 0; head < kv_heads_; ++head) std::memset(values(layer, head, page), 0, half_ * sizeof(bf16));
  return page;
}

void KvCache::clear_values_from(int page, int slot) {
  const std::vector<bf16> zeros(head_dim_padded_);
  for (int layer = 0; layer < layers_; ++layer)
    for (int head = 0; head < kv_heads_; ++head)
      for (int s = slot; s < kernels::kLeafTokens; ++s)
        kernels::store_value(values(layer, head, page), s, zeros.data(), head_dim_padded_);
}

void KvCache::release(int page) {
  ENSURE(page >= 0 && page < pages_, "only pages from allocate() are released");
  free_.push_back(page);
}

}  // namespace cpuinfer::model
