// The keys and values of all sequences, in pages of kernels::kLeafTokens tokens, on the nodes of their kv heads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "engine/model/config.h"
#include "engine/model/placement.h"
#include "kernels/pack.h"
#include "numa/memory.h"
#include "numa/topology.h"

namespace cpuinfer::model {

/// Tokens in a superblock of attention: partial results inside are merged first (docs/numerics.md). Its pages lie
/// together.
inline constexpr int kSuperblockTokens = 1024;
inline constexpr int kSuperblockPages = kSuperblockTokens / kernels::kLeafTokens;
inline int superblocks_for(int64_t tokens) { return static_cast<int>(ceil_div(tokens, int64_t{kSuperblockTokens})); }

/// A fixed pool of pages. A page holds 256 tokens of every layer and kv head, each as [keys][values] in the packed form
/// of kernels/pack.h, on the node that KvStripes names for the head and the page's stripe. Memory of a head and stripe
/// is [layer][page], so that consecutive pages of a head are one stream.
///
/// Pages are handed out with values of zero: the probabilities of tokens that do not exist yet are zero, and zero
/// times what an earlier sequence left must be zero, not NaN.
///
/// allocate() and release() are for one thread; keys() and values() may be used by all workers between them.
class KvCache {
 public:
  /// Bytes of one page over all layers and heads.
  static int64_t page_bytes(const ModelConfig& config);
  /// Pages that hold `tokens` tokens.
  static int pages_for(int64_t tokens);
  /// Bytes on each of `nodes` nodes: exactly what create() allocates. Pure.
  static std::vector<int64_t> node_bytes(const ModelConfig& config, int pages, int nodes);

  static Result<KvCache> create(const ModelConfig& config, int pages, int nodes, const numa::Topology& topology);

  int pages() const { return static_cast<int>(places_.size()); }
  int free_pages() const;
  int head_dim_padded() const { return head_dim_padded_; }
  const KvStripes& stripes() const { return stripes_; }

  /// The next page of a sequence that has `pages` (-1: not in memory), or kDoesNotFit if none is free. Superblocks of a
  /// sequence go to one stripe after the other, as far as there are pages.
  Result<int> allocate(std::span<const int> pages);
  /// One more holder of a page, which then needs one more release().
  void retain(int page) { ++holders_[page]; }
  /// The page is free when its last holder has released it.
  void release(int page);
  /// Whether someone else holds the page too, so that it must not change.
  bool is_shared(int page) const { return holders_[page] > 1; }
  /// Sets keys and values of a page from token `slot` on to zero. For sequences that are cut there.
  void clear_from(int page, int slot);

  /// [kLeafTokens, head_dim_padded] packed keys.
  bf16* keys(int layer, int kv_head, int page) const {
    const PagePlace place = places_[page];
    return streams_[kv_head * stripes_.stripes() + place.stripe] +
           (int64_t{layer} * stripe_pages_[place.stripe] + place.index) * 2 * half_;
  }
  /// [head_dim_padded, kLeafTokens] packed values.
  bf16* values(int layer, int kv_head, int page) const { return keys(layer, kv_head, page) + half_; }
  /// Where the keys and values of a head's page lie.
  int node_of(int kv_head, int page) const { return stripes_.node(kv_head, places_[page].stripe); }

  /// One buffer per node.
  std::span<const numa::NodeBuffer> memory() const { return memory_; }

 private:
  struct PagePlace {
    int stripe = 0;
    int index = 0;  // in the streams of its stripe
  };

  KvCache(const ModelConfig& config, int pages, int nodes);
  /// The stripe with the most free pages.
  int emptiest_stripe() const;

  KvStripes stripes_;
  int layers_ = 0, head_dim_padded_ = 0;
  int64_t half_ = 0;                      // elements of the keys, and of the values, of one head's page
  std::vector<PagePlace> places_;         // [pages]
  std::vector<int> holders_;              // [pages]
  std::vector<int> stripe_pages_;         // [stripes] how many
  std::vector<std::vector<int>> free_;    // [stripes]
  std::vector<bf16*> streams_;            // [kv_heads][stripes] where [layers][pages of the stripe] begins
  std::vector<numa::NodeBuffer> memory_;  // [nodes]
};

}  // namespace cpuinfer::model
