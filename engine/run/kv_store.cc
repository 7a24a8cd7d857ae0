#include "engine/run/kv_store.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "base/format.h"
#include "engine/model/model.h"
#include "kernels/pack.h"

namespace cpuinfer::run {
namespace {

constexpr int kPageTokens = kernels::kLeafTokens;

// Every number of the config that keys and values depend on, one way or the other.
std::string describe_sizes(const model::ModelConfig& c) {
  std::string text =
      format("{} layers {} hidden {} heads {} kv_heads {} head_dim {} vocab {} intermediate {}\n", c.architecture,
             c.layers, c.hidden, c.heads, c.kv_heads, c.head_dim, c.vocab, c.intermediate);
  text += format("experts {} of {} width {} normalised {} eps {:08x} bias {} tied {} moe ", c.experts_per_token,
                 c.experts, c.moe_intermediate, c.norm_topk_prob, std::bit_cast<uint32_t>(c.rms_eps), c.attention_bias,
                 c.tied_embeddings);
  for (const bool moe : c.moe_layers) text += moe ? '1' : '0';
  return text + "\n";
}

template <typename T>
void append_bytes(std::string& text, const T& value) {
  text.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

std::span<const TokenId> tokens_of_page(std::span<const TokenId> tokens, int page) {
  const size_t first = static_cast<size_t>(page) * kPageTokens;
  return tokens.subspan(first, std::min<size_t>(kPageTokens, tokens.size() - first));
}

}  // namespace

storage::PageShape KvStore::shape(const model::ModelConfig& config) {
  return {.layers = config.layers,
          .pieces = config.kv_heads,
          .piece_bytes = model::KvCache::page_bytes(config) / config.layers / config.kv_heads,
          .page_tokens = kPageTokens};
}

Result<std::unique_ptr<KvStore>> KvStore::open(const KvStoreOptions& options, const model::ModelConfig& config) {
  TRY_ASSIGN(std::unique_ptr<storage::PageStore> store,
             storage::PageStore::open({options.directory, options.size_bytes, shape(config)}));
  return std::unique_ptr<KvStore>(new KvStore(std::move(store)));
}

void KvStore::attach(const KvIdentity& identity, const model::ModelConfig& config, model::KvCache& kv) {
  config_ = &config;
  kv_ = &kv;
  identity_ = format("cpuinfer keys and values, layout {}, numerics {} version {}, weights {}\n",
                     storage::kPageLayoutVersion, identity.numerics, model::kNumericsVersion, identity.weights.hex());
}

PageChain KvStore::start_chain(const model::RopeFrequencies& rope) const {
  ENSURE(kv_ != nullptr, "attach() comes before chains");
  // Experts per token may change between sequences.
  std::string text = identity_ + describe_sizes(*config_);
  append_bytes(text, rope.attention_scaling);
  for (const float frequency : rope.inv_freq) append_bytes(text, frequency);
  return {storage::root_key(std::as_bytes(std::span(text.data(), text.size()))), {}};
}

storage::PageKey KvStore::key(PageChain& chain, std::span<const TokenId> tokens, int page) const {
  const size_t index = static_cast<size_t>(page);
  if (index < chain.keys.size()) return chain.keys[index];
  ENSURE(index == chain.keys.size(), "keys are made in the order of the pages");
  const std::span<const TokenId> own = tokens_of_page(tokens, page);
  const storage::PageKey made = storage::child_key(page == 0 ? chain.root : chain.keys[index - 1], own);
  if (own.size() == kPageTokens) chain.keys.push_back(made);
  return made;
}

storage::PageContent KvStore::content(PageChain& chain, std::span<const TokenId> tokens, int page,
                                      int cache_page) const {
  const std::span<const TokenId> own = tokens_of_page(tokens, page);
  storage::PageContent content = {.key = key(chain, tokens, page), .tokens = {own.begin(), own.end()}, .pieces = {}};
  content.pieces.reserve(static_cast<size_t>(config_->layers) * config_->kv_heads);
  for (int layer = 0; layer < config_->layers; ++layer)
    for (int head = 0; head < config_->kv_heads; ++head)
      content.pieces.push_back(reinterpret_cast<std::byte*>(kv_->keys(layer, head, cache_page)));
  return content;
}

int64_t KvStore::stored_tokens(PageChain chain, std::span<const TokenId> tokens, int first_page) const {
  const int64_t all = static_cast<int64_t>(tokens.size());
  int64_t stored = int64_t{first_page} * kPageTokens;
  for (int page = first_page; stored < all; ++page) {
    if (!store_->contains(key(chain, tokens, page))) break;
    stored = std::min(all, int64_t{page + 1} * kPageTokens);
  }
  return stored - int64_t{first_page} * kPageTokens;
}

int64_t KvStore::read(PageChain& chain, std::span<const TokenId> tokens, int first_page, std::span<const int> pages) {
  std::vector<storage::PageContent> contents;
  contents.reserve(pages.size());
  for (size_t i = 0; i < pages.size(); ++i)
    contents.push_back(content(chain, tokens, first_page + static_cast<int>(i), pages[i]));
  const int64_t good = store_->read(contents);
  chain.keys.resize(std::min(chain.keys.size(), static_cast<size_t>(first_page + good)));
  return good;
}

void KvStore::write(PageChain& chain, std::span<const TokenId> tokens, std::span<const int> pages, bool unfinished) {
  const int first = static_cast<int>(chain.keys.size());
  const int complete = static_cast<int>(tokens.size() / kPageTokens);
  const int end = unfinished ? model::KvCache::pages_for(static_cast<int64_t>(tokens.size())) : complete;
  for (int page = first; page < end; ++page) {
    const int cache_page = pages[static_cast<size_t>(page)];
    kv_->retain(cache_page);
    storage::PageContent page_content = content(chain, tokens, page, cache_page);
    store_->write(std::move(page_content), std::span(chain.keys).first(static_cast<size_t>(page)), cache_page);
  }
}

Result<storage::PageLayers> KvStore::open_cold(PageChain& chain, std::span<const TokenId> tokens, int page,
                                               int cache_page) {
  const storage::PageKey key = chain.keys[static_cast<size_t>(page)];
  store_->pin(key);
  if (!store_->contains(key)) settle(true);
  const auto open = [&] {
    return storage::PageLayers::open(store_->path(key), store_->shape(), key, tokens_of_page(tokens, page));
  };
  Result<storage::PageLayers> layers = fail(ErrorCode::kNotFound, "not in the store");
  if (store_->contains(key)) layers = open();
  if (layers) return layers;
  const ErrorCode code = layers.error().code;
  if (code == ErrorCode::kBadInput || code == ErrorCode::kNotFound) {
    if (store_->contains(key)) store_->remove_damaged(key, layers.error().message);
    kv_->retain(cache_page);
    store_->write(content(chain, tokens, page, cache_page), std::span(chain.keys).first(static_cast<size_t>(page)),
                  cache_page);
    settle(true);
    if (store_->contains(key)) {
      layers = open();
    } else {
      layers = fail(ErrorCode::kRuntime,
                    format("{}: the KV store did not keep page {} of a sequence, so it cannot leave memory: make room "
                           "for it on the disk, or give a larger --kv-store-size",
                           store_->directory().string(), page));
    }
  }
  if (!layers) store_->unpin(key);
  return layers;
}

void KvStore::settle(bool wait) {
  if (wait) store_->wait();
  ended_.clear();
  store_->collect(ended_);
  for (const int page : ended_) kv_->release(page);
}

}  // namespace cpuinfer::run
