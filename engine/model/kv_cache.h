// The keys and values of all sequences, in pages of kernels::kLeafTokens tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "engine/model/config.h"
#include "numa/memory.h"
#include "numa/topology.h"

namespace cpuinfer::model {

/// A fixed pool of pages. A page holds 256 tokens of every layer and kv head, each as [keys][values] in the packed form
/// of kernels/pack.h. Memory is [layer][kv_head][page], so that consecutive pages of a head are one stream.
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

  static Result<KvCache> create(const ModelConfig& config, int pages, const numa::Topology& topology);

  int pages() const { return pages_; }
  int free_pages() const { return static_cast<int>(free_.size()); }
  int head_dim_padded() const { return head_dim_padded_; }

  /// A page, or kDoesNotFit if none is free.
  Result<int> allocate();
  void release(int page);
  /// Sets the values of a page from token `slot` on to zero, as in a fresh page. For sequences that are cut there.
  void clear_values_from(int page, int slot);

  /// [kLeafTokens, head_dim_padded] packed keys.
  bf16* keys(int layer, int kv_head, int page) const {
    return base_ + ((int64_t{layer} * kv_heads_ + kv_head) * pages_ + page) * 2 * half_;
  }
  /// [head_dim_padded, kLeafTokens] packed values.
  bf16* values(int layer, int kv_head, int page) const { return keys(layer, kv_head, page) + half_; }

 private:
  KvCache() = default;

  numa::NodeBuffer memory_;
  bf16* base_ = nullptr;
  int layers_ = 0, kv_heads_ = 0, head_dim_padded_ = 0, pages_ = 0;
  int64_t half_ = 0;  ///< elements of the keys, and of the values, of one head's page
  std::vector<int> free_;
};

}  // namespace cpuinfer::model
