// Who may have how much of the KV cache: promises of pages to sequences, so that no one of them lacks a page later.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/result.h"

namespace cpuinfer::run {

/// The pages of a pool that are promised to living sequences; their sum never exceeds the pool. Knows numbers only: the
/// pages themselves are handed out by the KV cache. Used by one thread.
class Admission {
 public:
  Admission() = default;
  /// REQUIRES: pages >= 0, page_tokens > 0.
  Admission(int64_t pages, int64_t page_tokens) : pages_(pages), page_tokens_(page_tokens) {}
  /// The same where pages can be on disk, but for the last `resident_each` of each sequence (all, if it has fewer):
  /// they are in memory, which has room for `resident_pages` of all sequences.
  Admission(int64_t pages, int64_t page_tokens, int64_t resident_pages, int64_t resident_each)
      : pages_(pages), page_tokens_(page_tokens), resident_pages_(resident_pages), resident_each_(resident_each) {}

  /// Promises the pages of one more sequence that may reach `tokens` tokens, and says how many they are. Errors, with
  /// the numbers: kDoesNotFit (more than all there is: never), kBusy (others have them: later, when some have ended).
  Result<int64_t> admit(int64_t tokens);
  /// Gives back what admit() promised to one sequence.
  void release(int64_t pages);

  int64_t pages() const { return pages_; }
  int64_t promised() const { return promised_; }
  int sequences() const { return sequences_; }

 private:
  int64_t resident_of(int64_t pages) const { return std::min(pages, resident_each_); }

  int64_t pages_ = 0, page_tokens_ = 1;
  int64_t resident_pages_ = INT64_MAX, resident_each_ = 0, resident_ = 0;
  int64_t promised_ = 0;
  int sequences_ = 0;
};

}  // namespace cpuinfer::run
