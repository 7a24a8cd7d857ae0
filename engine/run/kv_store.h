// KvStore: the pages of sequences on disk. Knows which name a page has (storage/page_key.h), where its bytes lie in the
// cache, and which pages are being written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "engine/model/config.h"
#include "engine/model/kv_cache.h"
#include "engine/model/rope.h"
#include "engine/storage/digest.h"
#include "engine/storage/page_store.h"

namespace cpuinfer::run {

struct KvStoreOptions {
  std::filesystem::path directory;  ///< empty: no store
  int64_t size_bytes = 0;           ///< storage::PageStoreOptions
};

/// What keys and values depend on beside the tokens, the rotation and the model's sizes.
struct KvIdentity {
  storage::Digest128 weights;  ///< load::fingerprint_weights
  std::string numerics;        ///< name of the numeric profile
};

/// The names of a sequence's pages.
struct PageChain {
  storage::PageKey root;
  std::vector<storage::PageKey> keys;  ///< of its complete pages that have been read, or given to write()
};

/// Used by one thread. Writes go on behind it.
class KvStore {
 public:
  /// How the pages of a model are cut in files.
  static storage::PageShape shape(const model::ModelConfig& config);
  /// Errors: of storage::PageStore::open.
  static Result<std::unique_ptr<KvStore>> open(const KvStoreOptions& options, const model::ModelConfig& config);

  /// Ties the store to what it is for. REQUIRES: before all that follows; `config` and `kv` live as long as this.
  void attach(const KvIdentity& identity, const model::ModelConfig& config, model::KvCache& kv);

  /// The chain of a sequence without tokens. Everything that its pages depend on is in its root: the identity, the
  /// model's sizes, experts per token, versions, and the rotation's frequencies themselves.
  PageChain start_chain(const model::RopeFrequencies& rope) const;

  /// The tokens, from the first of page `first_page` to some page's end, that are stored without a gap; `tokens` begin
  /// at position 0. A last page that is not full counts if it was saved with just these tokens.
  int64_t stored_tokens(PageChain chain, std::span<const TokenId> tokens, int first_page) const;
  /// Reads pages first_page .. of `tokens` into `pages` of the cache; how many of them are good, from the first on.
  /// Their keys are added to the chain. REQUIRES: chain has the keys of the pages before.
  int64_t read(PageChain& chain, std::span<const TokenId> tokens, int first_page, std::span<const int> pages);

  /// Begins to write the complete pages that have not been written. `unfinished`: the last page too, though it is not
  /// full. The pages are held until settle() finds them written.
  void write(PageChain& chain, std::span<const TokenId> tokens, std::span<const int> pages, bool unfinished);
  /// Releases pages of the cache whose writes have ended; `wait`: until all have.
  void settle(bool wait);

  /// Opens complete page `page` of a sequence, which is in page `cache_page` of the cache, to be read layer by layer
  /// from disk instead, and pins it. If the store does not have it, or it is damaged, it is written again first.
  /// REQUIRES: it is one of the chain's. Errors: kRuntime (the store does not keep it: its disk is full or failing), of
  /// storage::PageLayers::open.
  Result<storage::PageLayers> open_cold(PageChain& chain, std::span<const TokenId> tokens, int page, int cache_page);
  /// It is not read that way any more.
  void close_cold(const storage::PageKey& key) { store_->unpin(key); }
  /// A cold page turned out to be damaged: it is reported and removed.
  void remove_damaged(const storage::PageKey& key, const std::string& reason) { store_->remove_damaged(key, reason); }

  const storage::PageStore& pages() const { return *store_; }

 private:
  explicit KvStore(std::unique_ptr<storage::PageStore> store) : store_(std::move(store)) {}
  /// The key of page `page`, which follows those of the chain or is in it; tokens: at most a page of them.
  storage::PageKey key(PageChain& chain, std::span<const TokenId> tokens, int page) const;
  storage::PageContent content(PageChain& chain, std::span<const TokenId> tokens, int page, int cache_page) const;

  std::unique_ptr<storage::PageStore> store_;
  std::string identity_;
  const model::ModelConfig* config_ = nullptr;
  model::KvCache* kv_ = nullptr;
  std::vector<int> ended_;  // kept for its memory
};

}  // namespace cpuinfer::run
