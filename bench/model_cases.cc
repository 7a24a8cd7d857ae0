#include "bench/model_cases.h"

#include "base/format.h"
#include "base/types.h"
#include "kernels/kernels.h"

namespace cpuinfer::bench {

int64_t ModelCase::kv_tokens() const { return batch * round_up(length(), int64_t{kernels::kLeafTokens}); }

std::string ModelCase::name() const {
  std::string text = decode() ? format("tg{}", decoded) : format("pp{}", prompt);
  if (depth > 0) text += format(" @ d{}", depth);
  if (batch > 1) text += format(", b{}", batch);
  return text;
}

std::vector<ModelCase> list_cases(const CaseLists& lists, int experts) {
  std::vector<ModelCase> cases;
  const std::vector<int> all = lists.experts.empty() ? std::vector<int>{experts} : lists.experts;
  for (const int k : all) {
    for (const int64_t depth : lists.depths)
      for (const int batch : lists.batches)
        if (lists.decoded > 0)
          cases.push_back({.depth = depth, .batch = batch, .experts = k, .prompt = 0, .decoded = lists.decoded});
    for (const int64_t prompt : lists.prompts)
      for (const int64_t depth : lists.depths)
        cases.push_back({.depth = depth, .batch = 1, .experts = k, .prompt = prompt, .decoded = 0});
  }
  return cases;
}

}  // namespace cpuinfer::bench
