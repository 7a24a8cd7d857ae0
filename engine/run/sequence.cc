// Sequence: its tokens and its pages, and what becomes of them when it moves, shrinks and ends. Declared in engine.h,
// since it is a part of its engine.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "engine/model/rope_length.h"
#include "engine/run/engine.h"

namespace cpuinfer::run {

Sequence::Sequence(Engine& engine, int64_t planned_tokens, int64_t promised_pages)
    : engine_(&engine),
      planned_tokens_(planned_tokens),
      promised_pages_(promised_pages),
      rope_(model::sequence_rope(engine.config(), planned_tokens)),
      frequencies_(
          model::rope_frequencies(rope_, engine.config().head_dim, engine.config().max_positions, planned_tokens)) {
  tokens_.reserve(planned_tokens);
  pages_.reserve(model::KvCache::pages_for(planned_tokens));
  engine_->register_sequence(nullptr, this);
}

Sequence::Sequence(Sequence&& other) noexcept
    : engine_(std::exchange(other.engine_, nullptr)),
      planned_tokens_(other.planned_tokens_),
      promised_pages_(other.promised_pages_),
      rope_(std::move(other.rope_)),
      frequencies_(std::move(other.frequencies_)),
      tokens_(std::exchange(other.tokens_, {})),
      pages_(std::exchange(other.pages_, {})),
      chain_(std::exchange(other.chain_, {})),
      cold_(std::exchange(other.cold_, {})),
      last_step_(other.last_step_) {
  if (engine_ != nullptr) engine_->register_sequence(&other, this);
}

Sequence& Sequence::operator=(Sequence&& other) noexcept {
  if (this == &other) return *this;
  if (engine_ != nullptr) engine_->register_sequence(this, nullptr);
  if (other.engine_ != nullptr) other.engine_->register_sequence(&other, nullptr);
  std::swap(engine_, other.engine_);
  std::swap(planned_tokens_, other.planned_tokens_);
  std::swap(promised_pages_, other.promised_pages_);
  std::swap(rope_, other.rope_);
  std::swap(frequencies_, other.frequencies_);
  std::swap(tokens_, other.tokens_);
  std::swap(pages_, other.pages_);
  std::swap(chain_, other.chain_);
  std::swap(cold_, other.cold_);
  std::swap(last_step_, other.last_step_);
  if (engine_ != nullptr) engine_->register_sequence(nullptr, this);
  if (other.engine_ != nullptr) other.engine_->register_sequence(nullptr, &other);
  return *this;
}

Sequence::~Sequence() {
  if (engine_ == nullptr) return;  // another has its tokens
  release_pages(0);
  engine_->admission_.release(promised_pages_);
  engine_->register_sequence(this, nullptr);
}

void Sequence::release_pages(size_t keep) {
  while (pages_.size() > keep) {
    if (pages_.back() >= 0) {
      engine_->kv_->release(pages_.back());
    } else {
      engine_->kv_store_->close_cold(chain_.keys[pages_.size() - 1]);
      cold_.pop_back();
    }
    pages_.pop_back();
  }
}

void Sequence::truncate(int64_t length) {
  ENSURE(length <= this->length(), "a sequence is truncated to at most its length");
  if (length == this->length()) return;
  tokens_.resize(length);
  clear_beyond_end();
}

void Sequence::clear_beyond_end() {
  // Cold superblocks are whole: of one that is cut nothing stays.
  if (length() < cold_tokens()) tokens_.resize(length() / model::kSuperblockTokens * model::kSuperblockTokens);
  release_pages(model::KvCache::pages_for(length()));
  chain_.keys.resize(std::min<size_t>(chain_.keys.size(), static_cast<size_t>(length() / kernels::kLeafTokens)));
  const int slot = static_cast<int>(length() % kernels::kLeafTokens);
  if (slot == 0) return;
  if (engine_->kv_->is_shared(pages_.back())) engine_->kv_store_->settle(true);  // it is being written
  engine_->kv_->clear_from(pages_.back(), slot);
}

}  // namespace cpuinfer::run
