#include "engine/model/kv_cache.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/format.h"
#include "kernels/pack.h"

namespace cpuinfer::model {
namespace {

int64_t half_elements(const ModelConfig& config) {
  return kernels::page_half_elements(round_up(config.head_dim, kernels::kTileTerms));
}

// How many of `pages` pages are in each stripe: four at a time, in turn.
std::vector<int> pages_of_stripes(int pages, int stripes) {
  std::vector<int> counts(stripes, 0);
  for (int stripe = 0; stripe < stripes; ++stripe) {
    const int round = stripes * kSuperblockPages;
    counts[stripe] =
        pages / round * kSuperblockPages + std::clamp(pages % round - stripe * kSuperblockPages, 0, kSuperblockPages);
  }
  return counts;
}

// Calls body(node, kv_head, stripe, bytes) for every head and stripe, in the order of their memory.
template <typename Body>
void for_each_stream(const ModelConfig& config, const KvStripes& stripes, std::span<const int> stripe_pages,
                     Body&& body) {
  const int64_t page = int64_t{config.layers} * 2 * half_elements(config) * static_cast<int64_t>(sizeof(bf16));
  for (int head = 0; head < stripes.kv_heads(); ++head)
    for (int stripe = 0; stripe < stripes.stripes(); ++stripe)
      body(stripes.node(head, stripe), head, stripe, page * stripe_pages[stripe]);
}

}  // namespace

int64_t KvCache::page_bytes(const ModelConfig& config) {
  return int64_t{config.layers} * config.kv_heads * 2 * half_elements(config) * static_cast<int64_t>(sizeof(bf16));
}

int KvCache::pages_for(int64_t tokens) { return static_cast<int>(ceil_div(tokens, int64_t{kernels::kLeafTokens})); }

std::vector<int64_t> KvCache::node_bytes(const ModelConfig& config, int pages, int nodes) {
  const KvStripes stripes(config.kv_heads, nodes);
  std::vector<int64_t> bytes(nodes, 0);
  for_each_stream(config, stripes, pages_of_stripes(pages, stripes.stripes()),
                  [&](int node, int, int, int64_t stream) { bytes[node] += stream; });
  return bytes;
}

KvCache::KvCache(const ModelConfig& config, int pages, int nodes)
    : stripes_(config.kv_heads, nodes),
      layers_(config.layers),
      head_dim_padded_(round_up(config.head_dim, kernels::kTileTerms)),
      half_(half_elements(config)),
      places_(pages),
      holders_(pages),
      stripe_pages_(pages_of_stripes(pages, stripes_.stripes())),
      free_(stripes_.stripes()),
      streams_(static_cast<size_t>(config.kv_heads) * stripes_.stripes()) {
  for (int page = pages - 1; page >= 0; --page) {
    const int group = page / kSuperblockPages;
    const int stripe = group % stripes_.stripes();
    places_[page] = {stripe, group / stripes_.stripes() * kSuperblockPages + page % kSuperblockPages};
    free_[stripe].push_back(page);
  }
  // Pages come back in any order; their lists must not grow in a step.
  for (int stripe = 0; stripe < stripes_.stripes(); ++stripe) free_[stripe].reserve(stripe_pages_[stripe]);
}

Result<KvCache> KvCache::create(const ModelConfig& config, int pages, int nodes, const numa::Topology& topology) {
  KvCache cache(config, pages, nodes);
  std::vector<bf16*> next;
  const std::vector<int64_t> bytes = node_bytes(config, pages, nodes);
  for (int node = 0; node < nodes; ++node) {
    TRY_ASSIGN(numa::NodeBuffer buffer, numa::NodeBuffer::allocate(bytes[node], node, topology));
    next.push_back(buffer.as<bf16>());
    cache.memory_.push_back(std::move(buffer));
  }
  for_each_stream(config, cache.stripes_, cache.stripe_pages_, [&](int node, int head, int stripe, int64_t stream) {
    cache.streams_[static_cast<size_t>(head) * cache.stripes_.stripes() + stripe] = next[node];
    next[node] += stream / static_cast<int64_t>(sizeof(bf16));
  });
  return cache;
}

int KvCache::free_pages() const {
  size_t count = 0;
  for (const std::vector<int>& pages : free_) count += pages.size();
  return static_cast<int>(count);
}

int KvCache::emptiest_stripe() const {
  const auto fewer = [](const std::vector<int>& a, const std::vector<int>& b) { return a.size() < b.size(); };
  return static_cast<int>(std::max_element(free_.begin(), free_.end(), fewer) - free_.begin());
}

Result<int> KvCache::allocate(std::span<const int> pages) {
  int stripe = emptiest_stripe();
  if (free_[stripe].empty()) {
    return fail(ErrorCode::kDoesNotFit, format("all {} KV pages ({} tokens) are in use", this->pages(),
                                               int64_t{this->pages()} * kernels::kLeafTokens));
  }
  if (!pages.empty() && pages.back() >= 0) {
    const bool new_superblock = pages.size() % kSuperblockPages == 0;
    const int next = (places_[pages.back()].stripe + (new_superblock ? 1 : 0)) % stripes_.stripes();
    if (!free_[next].empty()) stripe = next;
  }
  const int page = free_[stripe].back();
  free_[stripe].pop_back();
  holders_[page] = 1;
  for (int layer = 0; layer < layers_; ++layer)
    for (int head = 0; head < stripes_.kv_heads(); ++head)
      std::memset(values(layer, head, page), 0, half_ * sizeof(bf16));
  return page;
}

void KvCache::clear_from(int page, int slot) {
  const std::vector<bf16> zeros(head_dim_padded_);
  for (int layer = 0; layer < layers_; ++layer)
    for (int head = 0; head < stripes_.kv_heads(); ++head)
      for (int s = slot; s < kernels::kLeafTokens; ++s) {
        kernels::store_key(keys(layer, head, page), s, zeros.data(), head_dim_padded_);
        kernels::store_value(values(layer, head, page), s, zeros.data(), head_dim_padded_);
      }
}

void KvCache::release(int page) {
  ENSURE(page >= 0 && page < pages() && holders_[page] > 0, "only pages from allocate() are released");
  if (--holders_[page] > 0) return;
  free_[places_[page].stripe].push_back(page);
}

}  // namespace cpuinfer::model
