// The packed layouts, identical for every instruction set.
//
// Weights. A matrix [n outputs, k terms] is cut into units of 16 outputs; a unit is k/32 tiles of 1 KiB; a tile is
// [16 k pairs][16 n][2] bf16: 16 cache lines, each one k pair for 16 outputs. That is one VDPBF16PS operand, one row of
// an AMX B tile, and oneDNN's BA16a16b2a. k is padded with zeros to a multiple of 32, n to a multiple of 16.
//
// KV page of one layer, kv head and 256 tokens: keys, then values, each kLeafTokens * head_dim bf16 where head_dim is
// padded to a multiple of 32. Keys are packed as a weight matrix with n = tokens, k = head_dim: a score is a product
// with the query. Values are packed with n = head_dim, k = tokens: the output is a product with the probabilities.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/types.h"
#include "kernels/kernels.h"

namespace cpuinfer::kernels {

inline constexpr int kUnitOutputs = 16;
inline constexpr int kTileTerms = 32;

/// Elements of one unit.
constexpr int64_t unit_elements(int k_padded) { return int64_t{kUnitOutputs} * k_padded; }

/// Packs one unit: output j takes `k` consecutive elements at rows[j] (any alignment), or zeros if rows[j] is nullptr.
/// Terms k..k_padded-1 become zero. `dtype` is that of the source; F16 and F32 are rounded to bf16.
/// unit: [k_padded/32][16][16][2], 64-byte aligned.
void pack_unit(const std::byte* const rows[kUnitOutputs], DType dtype, int k, int k_padded, bf16* unit);

/// Reads output j of a unit back: out[0..k).
void unpack_output(const bf16* unit, int output, int k, bf16* out);

/// Elements of the keys (= of the values) of one page.
constexpr int64_t page_half_elements(int head_dim_padded) { return int64_t{kLeafTokens} * head_dim_padded; }

/// Writes the key of token `slot` (0..255) into a page's keys. key: [head_dim_padded].
void store_key(bf16* keys, int slot, const bf16* key, int head_dim_padded);
/// Writes the value of token `slot` into a page's values. value: [head_dim_padded].
void store_value(bf16* values, int slot, const bf16* value, int head_dim_padded);

}  // namespace cpuinfer::kernels
