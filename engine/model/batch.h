// Batch: the rows of one forward step. Plain data.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/types.h"
#include "engine/model/cold_pages.h"
#include "engine/model/rope.h"

namespace cpuinfer::model {

/// Consecutive rows of a batch that belong to one sequence.
struct BatchSequence {
  int first_row = 0;
  int rows = 0;
  int64_t start_position = 0;             ///< position of the first row; earlier tokens are in the KV cache
  std::span<const int> pages;             ///< KV pages by position / kLeafTokens, enough for all rows; -1: cold
  int cold_superblocks = 0;               ///< from the first on, not in the cache but in Batch::cold; none has a row
  const RopeFrequencies* rope = nullptr;  ///< fixed for the life of the sequence
};

/// Any mix of decode rows and prefill chunks.
struct Batch {
  std::vector<TokenId> tokens;  ///< [rows]
  std::vector<BatchSequence> sequences;
  std::vector<int> logit_rows;       ///< rows whose logits are wanted, ascending
  std::vector<ColdSuperblock> cold;  ///< of all sequences, in their order, ascending
  ColdPages* cold_pages = nullptr;   ///< reads `cold`, if there are any

  int rows() const { return static_cast<int>(tokens.size()); }
};

}  // namespace cpuinfer::model
