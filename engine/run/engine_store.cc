// What an engine does with pages on disk: begins sequences with them, keeps them for later.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/format.h"
#include "engine/run/engine.h"

namespace cpuinfer::run {
namespace {

// So many are read at once: enough for a disk, few enough to show progress and to be interrupted.
constexpr int64_t kReadTokens = 64 * kernels::kLeafTokens;

}  // namespace

Result<void> Engine::open_kv_store() {
  if (kernels_.profile == kernels::Profile::kOneDnn) {
    return fail(ErrorCode::kUsage,
                "--kv-store keeps keys and values that are the same bits in every run, which this "
                "kernel does not promise: leave out --gemm, or --kv-store");
  }
  TRY_ASSIGN(kv_store_, KvStore::open(options_.kv_store, config()));
  return limits_.cold_pages ? check_disk_room() : Result<void>();
}

Result<ReusedTokens> Engine::reuse(Sequence& sequence, std::span<const TokenId> tokens, const AppendOptions& options) {
  ENSURE(kv_.has_value(), "load() comes before sequences");
  tokens = tokens.first(std::min(tokens.size(), static_cast<size_t>(sequence.planned_tokens())));
  const auto [own_end, tokens_end] =
      std::mismatch(sequence.tokens().begin(), sequence.tokens().end(), tokens.begin(), tokens.end());
  sequence.truncate(tokens_end - tokens.begin());
  ReusedTokens reused = {.memory = sequence.length()};
  if (!kv_store_) return reused;
  kv_store_->settle(true);  // what is being written counts too

  // A page that is begun in memory may be whole in the store.
  const int64_t first = sequence.length() / kernels::kLeafTokens * kernels::kLeafTokens;
  const int64_t stored =
      first + kv_store_->stored_tokens(sequence.chain_, tokens, static_cast<int>(first / kernels::kLeafTokens));
  if (stored <= sequence.length()) return reused;
  sequence.truncate(first);
  reused.memory = first;
  for (int64_t begin = first; begin < stored;) {
    if (options.cancel != nullptr && options.cancel->load(std::memory_order_relaxed))
      return fail(ErrorCode::kInterrupted, format("interrupted after {} of {} tokens", begin - first, stored - first));
    // Where pages may have to leave memory for these, few at a time.
    const int64_t end = std::min(begin + (cold_stream_ ? int64_t{model::kSuperblockTokens} : kReadTokens), stored);
    const StepRequest self{&sequence, {}, LogitRows::kNone};
    TRY(take_pages(sequence, end, {&self, 1}));
    const int first_page = static_cast<int>(begin / kernels::kLeafTokens);
    const std::span<const int> pages = std::span<const int>(sequence.pages_).subspan(static_cast<size_t>(first_page));
    const int64_t good = kv_store_->read(sequence.chain_, tokens.first(static_cast<size_t>(end)), first_page, pages);
    const int64_t reached = std::min(end, begin + good * kernels::kLeafTokens);
    sequence.tokens_.insert(sequence.tokens_.end(), tokens.begin() + begin, tokens.begin() + reached);
    if (options.progress) options.progress(reached - first, stored - first);
    if (reached < end) {
      // A damaged page was read into memory that a fresh page has zeros in.
      sequence.release_pages(static_cast<size_t>(model::KvCache::pages_for(reached)));
      break;
    }
    begin = end;
  }
  reused.store = sequence.length() - first;
  return reused;
}

void Engine::store_pages(std::span<const StepRequest> requests) {
  if (!kv_store_) return;
  // Before more is written what the last step wrote must be on the disk: a kill loses at most the pages of one step.
  kv_store_->settle(std::any_of(requests.begin(), requests.end(), [](const StepRequest& request) {
    const Sequence& sequence = *request.sequence;
    return sequence.length() / kernels::kLeafTokens > static_cast<int64_t>(sequence.chain_.keys.size());
  }));
  for (const StepRequest& request : requests)
    kv_store_->write(request.sequence->chain_, request.sequence->tokens_, request.sequence->pages_, false);
}

int64_t Engine::stored_tokens(const Sequence& sequence, std::span<const TokenId> tokens) {
  if (!kv_store_) return 0;
  kv_store_->settle(true);
  return kv_store_->stored_tokens({sequence.chain_.root, {}}, tokens, 0);
}

void Engine::save(Sequence& sequence) {
  if (!kv_store_) return;
  // What an earlier sequence left behind the end is nobody's business.
  const int slot = static_cast<int>(sequence.length() % kernels::kLeafTokens);
  if (slot != 0 && !kv_->is_shared(sequence.pages_.back())) kv_->clear_from(sequence.pages_.back(), slot);
  kv_store_->write(sequence.chain_, sequence.tokens(), sequence.pages_, true);
  kv_store_->settle(true);
}

}  // namespace cpuinfer::run
