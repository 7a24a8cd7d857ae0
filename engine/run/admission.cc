#include "engine/run/admission.h"

#include "base/check.h"
#include "base/format.h"
#include "base/types.h"

namespace cpuinfer::run {

Result<int64_t> Admission::admit(int64_t tokens) {
  ENSURE(tokens >= 0, "a sequence has no negative length");
  const int64_t wanted = ceil_div(tokens, page_tokens_);
  if (wanted > pages_) {
    return fail(ErrorCode::kDoesNotFit,
                format("{} tokens (prompt and answer) need {} KV pages of {} tokens and the cache has {} ({} tokens); "
                       "ask for a shorter answer, or start with a larger --ctx",
                       tokens, wanted, page_tokens_, pages_, pages_ * page_tokens_));
  }
  if (wanted > pages_ - promised_) {
    return fail(ErrorCode::kBusy,
                format("{} tokens (prompt and answer) need {} KV pages of {} tokens; {} of {} are promised to {} other "
                       "sequence{}: wait until one ends",
                       tokens, wanted, page_tokens_, promised_, pages_, sequences_, sequences_ == 1 ? "" : "s"));
  }
  if (resident_of(wanted) > resident_pages_ - resident_) {
    return fail(
        ErrorCode::kBusy,
        format("{} tokens (prompt and answer) need {} KV pages in memory at the least; {} of {} are promised to "
               "{} other sequence{}: wait until one ends",
               tokens, resident_of(wanted), resident_, resident_pages_, sequences_, sequences_ == 1 ? "" : "s"));
  }
  promised_ += wanted;
  resident_ += resident_of(wanted);
  ++sequences_;
  return wanted;
}

void Admission::release(int64_t pages) {
  ENSURE(sequences_ > 0 && pages >= 0 && pages <= promised_, "only what was promised is given back");
  promised_ -= pages;
  resident_ -= resident_of(pages);
  --sequences_;
}

}  // namespace cpuinfer::run
