// Matrix product on tiles, as a template over the tiles: those of the CPU (gemm_tiles.cc) or emulated ones
// (gemm_emulated.cc).
//
// A tile of weights is 1 KiB of the packed layout as it lies in memory: [16 k pairs][16 n][2]. A tile of a is up to 16
// rows by 32 terms, loaded from the rows where they are, or, if rows are picked by a_rows or lie a multiple of 4 KiB
// apart (16 rows would compete for one set of L1), from a copy in tile form.
//
// Tile registers: 0..3 sums [row tile][unit], 4 and 5 a, 6 and 7 weights. Up to 32 rows by 2 units are in work at a
// time, so each tile loaded is used twice. K is cut into pieces for which 32 rows of a stay in the caches while the
// units of a group pass by; between pieces the sums wait in memory, which keeps their bits. Groups are small enough for
// their weights to stay in L2 while blocks of rows pass by.
//
// The anonymous namespace is on purpose: the files that include this are compiled for different instruction sets, and
// the linker must never take code of one for the other.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace cpuinfer::kernels {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileTerms = 32;
constexpr int kTileElements = 512;  // 1 KiB
constexpr int kBlockRows = 2 * kTileRows;
// Tiles along K in a piece. With 32 rows, the piece of a (16 KiB) stays in L1 while the units pass; with 16 or fewer,
// the weights are what counts, and they are read in long runs.
constexpr int piece_tiles(int row_tiles) { return row_tiles == 2 ? 8 : 64; }
constexpr int kGroupUnits = 16;              // even
constexpr int64_t kGroupElements = 1 << 19;  // 1 MiB of weights: half of L2
constexpr int kTilesAhead = 2;               // prefetch distance in KiB per stream

/// What LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

/// Row tiles of rows0 and rows1 (0: none) rows.
inline void describe_tiles(int rows0, int rows1, TileConfig* config) {
  __builtin_memset(config, 0, sizeof(*config));
  config->palette = 1;
  const int rows[8] = {rows0, rows0, rows1, rows1, rows0, rows1, kTileRows, kTileRows};
  for (int i = 0; i < 8; ++i) {
    config->rows[i] = static_cast<uint8_t>(rows[i]);
    config->row_bytes[i] = rows[i] == 0 ? 0 : 64;
  }
}

/// A piece of K for a block of rows and one or two units.
struct TilePiece {
  const bf16* a[2];     ///< first tile of each row tile
  int64_t a_row_bytes;  ///< between the rows of a tile
  int64_t a_step;       ///< elements between tiles along K
  const bf16* w[2];     ///< first tile of each unit
  const bf16* next[2];  ///< what each will read next, to be prefetched; may lie behind the weights
  int tiles;            ///< along K
  bool prefetch;
  const float* from;  ///< [row tile][unit][16][16]: sums to go on with, or nullptr: start from zero
  float* to[2];       ///< per row tile: where the sums of unit 0 go
  int64_t to_row_bytes;
  int64_t to_unit;  ///< elements between the units of `to`
};

/// Addresses are computed as integers: those to be prefetched may be nowhere.
inline const char* tile_address(const bf16* base, int tile) {
  return reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(tile) * 1024);
}

template <int kRowTiles, int kUnits, typename Tiles>
inline void multiply_piece(Tiles& tiles, const TilePiece& p) {
  constexpr bool kTwoRowTiles = kRowTiles == 2;
  constexpr bool kTwoUnits = kUnits == 2;
  if (p.from == nullptr) {
    tiles.template zero<0>();
    if constexpr (kTwoUnits) tiles.template zero<1>();
    if constexpr (kTwoRowTiles) tiles.template zero<2>();
    if constexpr (kTwoRowTiles && kTwoUnits) tiles.template zero<3>();
  } else {
    tiles.template load<0>(p.from, 64);
    if constexpr (kTwoUnits) tiles.template load<1>(p.from + 256, 64);
    if constexpr (kTwoRowTiles) tiles.template load<2>(p.from + 512, 64);
    if constexpr (kTwoRowTiles && kTwoUnits) tiles.template load<3>(p.from + 768, 64);
  }
  for (int tile = 0; tile < p.tiles; ++tile) {
    if (p.prefetch) {
      const int ahead = tile + kTilesAhead;
      for (int u = 0; u < kUnits; ++u) {
        const char* line = ahead < p.tiles ? tile_address(p.w[u], ahead) : tile_address(p.next[u], ahead - p.tiles);
        for (int i = 0; i < 16; ++i) __builtin_prefetch(line + 64 * i);
      }
    }
    tiles.template load<4>(p.a[0] + tile * p.a_step, p.a_row_bytes);
    tiles.template load<6>(p.w[0] + int64_t{tile} * kTileElements, 64);
    tiles.template multiply_add<0, 4, 6>();
    if constexpr (kTwoUnits) {
      tiles.template load<7>(p.w[1] + int64_t{tile} * kTileElements, 64);
      tiles.template multiply_add<1, 4, 7>();
    }
    if constexpr (kTwoRowTiles) {
      tiles.template load<5>(p.a[1] + tile * p.a_step, p.a_row_bytes);
      tiles.template multiply_add<2, 5, 6>();
      if constexpr (kTwoUnits) tiles.template multiply_add<3, 5, 7>();
    }
  }
  tiles.template store<0>(p.to[0], p.to_row_bytes);
  if constexpr (kTwoUnits) tiles.template store<1>(p.to[0] + p.to_unit, p.to_row_bytes);
  if constexpr (kTwoRowTiles) tiles.template store<2>(p.to[1], p.to_row_bytes);
  if constexpr (kTwoRowTiles && kTwoUnits) tiles.template store<3>(p.to[1] + p.to_unit, p.to_row_bytes);
}

/// Up to 32 rows by the units of a group.
struct TileBlock {
  int row0, rows;
  int unit0, units;
  const bf16* next;  ///< weights to be read after the block
  bool prefetch;
};

/// Copies rows of a, terms k0..k0+32*tiles, to [row tile][tile][16][32].
template <int kPieceTiles>
inline void copy_rows(const Gemm& g, const TileBlock& block, int k0, int tiles, uint16_t* copy) {
  for (int r = 0; r < block.rows; ++r) {
    const int64_t row = g.a_rows != nullptr ? g.a_rows[block.row0 + r] : block.row0 + r;
    const bf16* from = g.a + row * g.a_stride + k0;
    uint16_t* to = copy + (r / kTileRows * kPieceTiles * kTileRows + r % kTileRows) * kTileTerms;
    for (int tile = 0; tile < tiles; ++tile) {
      __builtin_memcpy(to + tile * kTileElements, from + tile * kTileTerms, 64);
    }
  }
}

/// c += sums for `rows` rows of a row tile and one unit.
inline void add_sums(const Gemm& g, int row0, int rows, int unit, const float* sums) {
  for (int r = 0; r < rows; ++r) {
    float* c = g.c + (row0 + r) * g.c_stride + unit * 16;
    for (int j = 0; j < 16; ++j) c[j] = c[j] + sums[r * 16 + j];
  }
}

template <int kRowTiles, typename Tiles>
[[gnu::noinline]] void tile_block(Tiles& tiles, const Gemm& g, const TileBlock& block, bool copied) {
  constexpr int kPieceTiles = piece_tiles(kRowTiles);
  alignas(64) uint16_t copy[kRowTiles * kPieceTiles * kTileElements];
  alignas(64) float sums[kGroupUnits / 2][2 * kRowTiles * 256];  // [pair of units][row tile][unit][16][16]

  for (int k0 = 0; k0 < g.k; k0 += kPieceTiles * kTileTerms) {
    const int left = (g.k - k0) / kTileTerms;
    const bool last = left <= kPieceTiles;
    TilePiece p;
    p.tiles = last ? left : kPieceTiles;
    p.prefetch = block.prefetch;
    if (copied) {
      copy_rows<kPieceTiles>(g, block, k0, p.tiles, copy);
      p.a[0] = reinterpret_cast<const bf16*>(copy);
      p.a[1] = p.a[0] + (kRowTiles - 1) * kPieceTiles * kTileElements;
      p.a_row_bytes = 64;
      p.a_step = kTileElements;
    } else {
      // Picked rows are copied unless there is only one.
      const int64_t row = g.a_rows != nullptr ? g.a_rows[block.row0] : block.row0;
      p.a[0] = g.a + row * g.a_stride + k0;
      p.a[1] = p.a[0] + (kRowTiles - 1) * kTileRows * g.a_stride;
      p.a_row_bytes = g.a_stride * 2;
      p.a_step = kTileTerms;
    }
    const bf16* const w = g.w + block.unit0 * g.w_unit_stride + int64_t{k0} * 16;
    const bf16* const after = last ? block.next : w + int64_t{kPieceTiles} * kTileElements;

    for (int unit = 0; unit < block.units; unit += 2) {
      const bool two = unit + 1 < block.units;
      float* const pair_sums = sums[unit / 2];
      p.w[0] = w + unit * g.w_unit_stride;
      p.w[1] = two ? p.w[0] + g.w_unit_stride : p.w[0];
      p.next[0] = unit + 2 < block.units ? p.w[0] + 2 * g.w_unit_stride : after;
      p.next[1] = unit + 3 < block.units ? p.w[1] + 2 * g.w_unit_stride : after;
      p.from = k0 == 0 ? nullptr : pair_sums;
      if (last && !g.accumulate) {
        p.to[0] = g.c + block.row0 * g.c_stride + (block.unit0 + unit) * 16;
        p.to[1] = p.to[0] + (kRowTiles - 1) * kTileRows * g.c_stride;
        p.to_row_bytes = g.c_stride * 4;
        p.to_unit = 16;
      } else {
        p.to[0] = pair_sums;
        p.to[1] = pair_sums + (kRowTiles - 1) * 512;
        p.to_row_bytes = 64;
        p.to_unit = 256;
      }
      if (two) {
        multiply_piece<kRowTiles, 2>(tiles, p);
      } else {
        multiply_piece<kRowTiles, 1>(tiles, p);
      }
      if (!last || !g.accumulate) continue;
      for (int row_tile = 0; row_tile < kRowTiles; ++row_tile) {
        const int row = row_tile * kTileRows;
        const int rows = block.rows - row < kTileRows ? block.rows - row : kTileRows;
        for (int u = 0; u <= two; ++u) {
          add_sums(g, block.row0 + row, rows, block.unit0 + unit + u, pair_sums + row_tile * 512 + u * 256);
        }
      }
    }
  }
}

template <typename Tiles>
inline void gemm_by_tiles(Tiles& tiles, const Gemm& g) {
  const bool copied = g.m > 1 && (g.a_rows != nullptr || g.a_stride * 2 % 4096 == 0);
  const int units = g.n / 16;
  int group = kGroupUnits;
  while (g.m > kBlockRows && group > 4 && group * int64_t{g.k} * 16 > kGroupElements) group /= 2;

  int configured_rows = 0;
  for (int unit0 = 0; unit0 < units; unit0 += group) {
    for (int row0 = 0; row0 < g.m; row0 += kBlockRows) {
      TileBlock block;
      block.row0 = row0;
      block.rows = g.m - row0 < kBlockRows ? g.m - row0 : kBlockRows;
      block.unit0 = unit0;
      block.units = units - unit0 < group ? units - unit0 : group;
      const bool last = row0 + kBlockRows >= g.m;
      block.next = g.w + (last ? unit0 + block.units : unit0) * g.w_unit_stride;
      block.prefetch = row0 == 0;
      if (block.rows != configured_rows) {
        configured_rows = block.rows;
        const int rows0 = block.rows < kTileRows ? block.rows : kTileRows;
        TileConfig config;
        describe_tiles(rows0, block.rows - rows0, &config);
        tiles.configure(config);
      }
      if (block.rows > kTileRows) {
        tile_block<2>(tiles, g, block, copied);
      } else {
        tile_block<1>(tiles, g, block, copied);
      }
    }
  }
}

}  // namespace
}  // namespace cpuinfer::kernels
