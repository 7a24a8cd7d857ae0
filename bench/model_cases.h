// Which cases a benchmark of a model has: plain data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cpuinfer::bench {

/// One line of the result.
struct ModelCase {
  int64_t depth = 0;    ///< tokens that are in the cache of every sequence before
  int batch = 1;        ///< sequences that run together
  int experts = 0;      ///< per token; 0: a dense model
  int64_t prompt = 0;   ///< tokens of prefill; 0: decode
  int64_t decoded = 0;  ///< decode steps; 0: prefill

  bool decode() const { return prompt == 0; }
  /// Tokens that one repeat computes, all sequences together.
  int64_t tokens() const { return (prompt + decoded) * batch; }
  /// The most tokens that a sequence holds.
  int64_t length() const { return depth + prompt + decoded; }
  /// Whole KV pages of all sequences, in tokens.
  int64_t kv_tokens() const;
  /// "tg64", "tg64 @ d4096, b8", "pp2048 @ d32768".
  std::string name() const;
};

/// The lists whose combinations are the cases.
struct CaseLists {
  std::vector<int64_t> depths = {0};
  std::vector<int> batches = {1};     ///< of decode
  std::vector<int> experts = {};      ///< empty: as config.json says
  std::vector<int64_t> prompts = {};  ///< prefill, one sequence
  int64_t decoded = 32;               ///< 0: no decode
};

/// For each number of experts: decode for each depth and batch, then prefill for each prompt and depth.
/// experts: of the model, if the lists name none.
std::vector<ModelCase> list_cases(const CaseLists& lists, int experts);

}  // namespace cpuinfer::bench
