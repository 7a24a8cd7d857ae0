// KV pages that memory has no room for: planned, written to the KV store, and read again for every step that needs
// them. What lies on disk of a sequence is its beginning, in whole superblocks: attention reads them from the first on,
// and what was computed last is written to.
#include <sys/statvfs.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/format.h"
#include "base/log.h"
#include "engine/run/engine.h"
#include "engine/storage/open_files.h"

namespace cpuinfer::run {
namespace {

constexpr int64_t kSuperblockPages = model::kSuperblockPages;
// Kept free when pages come back from disk, so that they do not have to leave again in the next steps.
constexpr int kSparePages = 2 * model::kSuperblockPages;

bool is_in(std::span<const StepRequest> step, const Sequence& sequence) {
  return std::any_of(step.begin(), step.end(), [&](const StepRequest& r) { return r.sequence == &sequence; });
}

}  // namespace

void Engine::register_sequence(Sequence* sequence, Sequence* now) {
  if (sequence == nullptr) return sequences_.push_back(now);
  const auto found = std::find(sequences_.begin(), sequences_.end(), sequence);
  ENSURE(found != sequences_.end(), "every living sequence is registered");
  if (now != nullptr)
    *found = now;
  else
    sequences_.erase(found);
}

// The largest part of the pages that fits beside the rest, if at least what a step needs does.
Result<void> Engine::plan_cold_pages(const numa::MemoryLimit& available, load::PlannedModel& planned) {
  if (options_.kv_store.directory.empty()) {
    return fail(ErrorCode::kUsage,
                "--kv-tier disk keeps pages in a KV store: give its directory with --kv-store, on a fast local disk");
  }
  load::PlanRequest request = plan_request_;
  request.limits.cold_pages = true;
  request.stage_pages = ColdStream::stage_pages(nodes(), planned.model->config());
  // In a step a sequence writes to at most so many pages, and the superblock before is not complete.
  const int64_t step_pages = model::KvCache::pages_for(limits_.rows) + 2 * kSuperblockPages;
  const int64_t least = round_up(limits_.sequences * step_pages + 2 * kSparePages, kSuperblockPages);
  std::optional<load::PlannedModel> best;
  for (int64_t low = least, high = planned_pages_; low <= high;) {
    const int64_t middle = best ? low + (high - low) / 2 : least;
    request.kv_pages = static_cast<int>(middle / kSuperblockPages * kSuperblockPages);
    TRY_ASSIGN(load::PlannedModel tried, load::plan_model(planned.model->config(), request, topology_, available));
    if (!tried.plan.fits()) {
      if (!best) return {};  // the plan that was asked for says what is missing
      high = middle - 1;
      continue;
    }
    kv_pages_ = request.kv_pages;
    best = std::move(tried);
    low = std::max(middle + kSuperblockPages, low + 1);
  }
  if (!best) return {};
  planned = std::move(*best);
  limits_.cold_pages = true;
  // What a sequence cannot have on disk is its last superblock; beside that there is what a step writes to.
  admission_ = Admission(planned_pages_, kernels::kLeafTokens,
                         kv_pages_ - model::KvCache::pages_for(limits_.rows) - limits_.sequences - 2 * kSparePages,
                         kSuperblockPages);
  plan_request_ = request;
  plan_request_.limits = limits_;
  plan_request_.kv_pages = kv_pages_;
  return {};
}

Result<void> Engine::check_disk_room() const {
  const storage::PageStore& store = kv_store_->pages();
  TRY(storage::allow_open_files(planned_pages_ - kv_pages_));  // cold pages stay open
  if (store.read_only())
    return fail(ErrorCode::kPermission,
                format("{}: --kv-tier disk writes pages there, and it takes none", store.directory().string()));
  const int64_t needed = (planned_pages_ - kv_pages_) * store.shape().file_bytes();
  const int64_t size = options_.kv_store.size_bytes;
  if (size != 0 && size < needed) {
    return fail(ErrorCode::kDoesNotFit,
                format("the pages that memory has no room for take {} on disk and --kv-store-size is {}",
                       format_bytes(needed), format_bytes(size)));
  }
  struct statvfs disk;
  if (::statvfs(store.directory().c_str(), &disk) != 0) return {};
  // What the store has may go for it.
  const int64_t room =
      static_cast<int64_t>(disk.f_bavail) * static_cast<int64_t>(disk.f_frsize) + store.statistics().bytes;
  if (room < needed) {
    return fail(ErrorCode::kDoesNotFit,
                format("{}: the pages that memory has no room for take {} on disk and it has room for {}",
                       store.directory().string(), format_bytes(needed), format_bytes(room)));
  }
  return {};
}

// Makes at least one page free: first of sequences that wait, those that have waited for longest; then of those in the
// step, the one with most in memory. One whose pages cannot leave memory is passed over.
Result<void> Engine::make_room(std::span<const StepRequest> step) {
  std::vector<Sequence*> candidates;
  for (Sequence* const sequence : sequences_)
    if (sequence->length() - sequence->cold_tokens() >= model::kSuperblockTokens) candidates.push_back(sequence);
  std::sort(candidates.begin(), candidates.end(), [&](const Sequence* a, const Sequence* b) {
    const bool a_runs = is_in(step, *a), b_runs = is_in(step, *b);
    if (a_runs != b_runs) return b_runs;
    return a_runs ? a->length() - a->cold_tokens() > b->length() - b->cold_tokens() : a->last_step_ < b->last_step_;
  });
  ENSURE(!candidates.empty(), "memory has room for what the sequences of a step write to");
  Result<void> evicted;
  for (Sequence* const sequence : candidates) {
    evicted = evict_superblock(*sequence);
    if (evicted) return {};
  }
  return evicted;
}

Result<void> Engine::evict_superblock(Sequence& sequence) {
  const size_t first = sequence.cold_.size();
  std::vector<storage::PageLayers> opened;
  for (size_t page = first; page < first + kSuperblockPages; ++page) {
    auto layers =
        kv_store_->open_cold(sequence.chain_, sequence.tokens_, static_cast<int>(page), sequence.pages_[page]);
    if (!layers) {
      for (size_t i = 0; i < opened.size(); ++i) kv_store_->close_cold(sequence.chain_.keys[first + i]);
      return std::unexpected(std::move(layers).error());
    }
    opened.push_back(std::move(*layers));
  }
  kv_store_->settle(true);  // a page that is being written is not free yet
  for (size_t i = 0; i < opened.size(); ++i) {
    kv_->release(std::exchange(sequence.pages_[first + i], -1));
    sequence.cold_.push_back(std::move(opened[i]));
  }
  return {};
}

// Sequences that had no part in the last step get back what memory has room for, of others that now wait.
Result<void> Engine::bring_back(std::span<const StepRequest> step) {
  for (const StepRequest& request : step) {
    Sequence& sequence = *request.sequence;
    if (sequence.last_step_ == steps_ - 1) continue;
    const int64_t wanted = model::KvCache::pages_for(static_cast<int64_t>(request.tokens.size())) + kSparePages;
    while (!sequence.cold_.empty()) {
      while (kv_->free_pages() < wanted + kSuperblockPages) {
        const bool others_wait = std::any_of(sequences_.begin(), sequences_.end(), [&](const Sequence* other) {
          return !is_in(step, *other) && other->length() - other->cold_tokens() >= model::kSuperblockTokens;
        });
        // What cannot leave memory stays, and so does what is on disk.
        if (!others_wait || !make_room(step)) return {};
      }
      const size_t first = sequence.cold_.size() - kSuperblockPages;
      std::vector<int> pages;
      for (int64_t i = 0; i < kSuperblockPages; ++i) {
        TRY_ASSIGN(const int page, kv_->allocate(pages));
        pages.push_back(page);
      }
      const std::span<const TokenId> tokens(sequence.tokens_.data(), (first + kSuperblockPages) * kernels::kLeafTokens);
      PageChain chain = sequence.chain_;
      const int64_t good = kv_store_->read(chain, tokens, static_cast<int>(first), pages);
      if (good < kSuperblockPages) {
        // Reading it in the step will find the same, and say so.
        for (const int page : pages) kv_->release(page);
        break;
      }
      for (int64_t i = 0; i < kSuperblockPages; ++i) {
        kv_store_->close_cold(sequence.chain_.keys[first + i]);
        sequence.pages_[first + i] = pages[i];
      }
      sequence.cold_.resize(first);
    }
  }
  return {};
}

void Engine::begin_cold(std::span<const StepRequest> step) {
  batch_.cold.clear();
  batch_.cold_pages = nullptr;
  std::vector<const storage::PageLayers*> pages;
  for (size_t s = 0; s < step.size(); ++s) {
    const std::vector<storage::PageLayers>& cold = step[s].sequence->cold_;
    for (size_t page = 0; page < cold.size(); ++page) {
      if (page % kSuperblockPages == 0)
        batch_.cold.push_back({static_cast<int>(s), static_cast<int>(page / kSuperblockPages)});
      pages.push_back(&cold[page]);
    }
  }
  if (pages.empty()) return;
  batch_.cold_pages = cold_stream_.get();
  cold_stream_->begin(std::move(pages));
}

Result<void> Engine::end_cold(std::span<const StepRequest> step) {
  lost_tokens_.clear();
  if (batch_.cold_pages == nullptr) return {};
  std::optional<size_t> damaged;
  const Result<void> read = cold_stream_->end(damaged);
  if (!damaged) return read;
  // The sequence whose page it is goes back to before it.
  size_t page = *damaged;
  for (const StepRequest& request : step) {
    Sequence& sequence = *request.sequence;
    if (page >= sequence.cold_.size()) {
      page -= sequence.cold_.size();
      continue;
    }
    kv_store_->remove_damaged(sequence.chain_.keys[page], read.error().message);
    const std::vector<TokenId> all = sequence.tokens_;
    sequence.truncate(static_cast<int64_t>(page) * kernels::kLeafTokens);
    lost_tokens_.assign(all.begin() + sequence.length(), all.end());
    break;
  }
  return read;
}

}  // namespace cpuinfer::run
