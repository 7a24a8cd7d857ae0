// Who may have how much of the KV cache: promises of pages to sequences, so that no one of them lacks a page later.
#pragma once

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

  /// Promises the pages of one more sequence that may reach `tokens` tokens, and says how many they are. Errors, with
  /// the numbers: kDoesNotFit (more than all there is: never), kBusy (others have them: later, when some have ended).
  Result<int64_t> admit(int64_t tokens);
  /// Gives back what admit() promised to one sequence.
  void release(int64_t pages);

  int64_t pages() const { return pages_; }
  int64_t promised() const { return promised_; }
  int sequences() const { return sequences_; }

 private:
  int64_t pages_ = 0, page_tokens_ = 1;
  int64_t promised_ = 0;
  int sequences_ = 0;
};

}  // namespace cpuinfer::run
