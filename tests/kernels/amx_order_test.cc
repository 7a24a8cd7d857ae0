// Checks on the silicon what kernels/kernels.h says about it: TDPBF16PS and VDPBF16PS compute the orders of
// Profile::kAmx and Profile::kDp bit by bit, with subnormals read and written as zero whatever MXCSR says. Each case
// also counts how often plausible other orders give different bits: a check that no other order can fail would prove
// nothing.
//
// The instructions are inline assembly, so this file needs no instruction-set flags and may start on any CPU.
#include <doctest/doctest.h>
#include <xmmintrin.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>

#include "base/types.h"
#include "kernels/isa.h"

namespace cpuinfer::kernels {
namespace {

constexpr int kRows = 16;
constexpr int kOutputs = 16;
constexpr int kPairs = 16;
constexpr unsigned kFlush = 0x8040;  // MXCSR: FTZ and DAZ

/// Operands of one tile product; a line of w is one k pair for 16 outputs.
struct alignas(64) Tiles {
  bf16 a[kRows][2 * kPairs];
  bf16 w[kPairs][2 * kOutputs];
  float c[kRows][kOutputs];
};

struct TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t colsb[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

/// tmm0 = c (rows x outputs), tmm1 = a (rows x pairs), tmm2 = w (pairs x outputs).
void configure(int rows, int pairs, int outputs) {
  alignas(64) TileConfig config;
  config.rows[0] = config.rows[1] = static_cast<uint8_t>(rows);
  config.rows[2] = static_cast<uint8_t>(pairs);
  config.colsb[0] = config.colsb[2] = static_cast<uint16_t>(4 * outputs);
  config.colsb[1] = static_cast<uint16_t>(4 * pairs);
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

void tile_product(Tiles& t) {
  const int64_t stride = 64;
  __asm__ volatile(
      "tileloadd (%0,%3,1), %%tmm0\n\ttileloadd (%1,%3,1), %%tmm1\n\ttileloadd (%2,%3,1), %%tmm2\n\t"
      "tdpbf16ps %%tmm2, %%tmm1, %%tmm0\n\ttilestored %%tmm0, (%0,%3,1)"
      :
      : "r"(t.c), "r"(t.a), "r"(t.w), "r"(stride)
      : "memory");
}

void release_tiles() { __asm__ volatile("tilerelease"); }

/// c[row] += a[row][pair] * w[pair] for 16 outputs.
void dot_pairs(Tiles& t, int row, int pair) {
  __asm__ volatile(
      "vmovups (%0), %%zmm0\n\tvmovups (%2), %%zmm1\n\tvdpbf16ps (%1)%{1to16%}, %%zmm1, %%zmm0\n\tvmovups %%zmm0, (%0)"
      :
      : "r"(t.c[row]), "r"(t.a[row] + 2 * pair), "r"(t.w[pair])
      : "memory", "xmm0", "xmm1");
}

/// One pair of terms: the even ones are at 2i, the odd ones at 2i + 1.
struct Pairs {
  float even_a[kPairs], odd_a[kPairs], even_w[kPairs], odd_w[kPairs];
};

Pairs terms(const Tiles& t, int row, int output) {
  Pairs p;
  for (int i = 0; i < kPairs; ++i) {
    p.even_a[i] = to_float(t.a[row][2 * i]);
    p.odd_a[i] = to_float(t.a[row][2 * i + 1]);
    p.even_w[i] = to_float(t.w[i][2 * output]);
    p.odd_w[i] = to_float(t.w[i][2 * output + 1]);
  }
  return p;
}

// The CPUs on which these run have FMA; without the attribute each fma would be a call into libm.
#define WITH_FMA [[gnu::target("fma")]]

using Order = float (*)(const Pairs&, int pairs, float c);

WITH_FMA float amx_order(const Pairs& p, int pairs, float c) {
  float e = 0.0f, o = 0.0f;
  for (int i = 0; i < pairs; ++i) {
    e = std::fma(p.even_a[i], p.even_w[i], e);
    o = std::fma(p.odd_a[i], p.odd_w[i], o);
  }
  return c + (e + o);
}
WITH_FMA float dp_order(const Pairs& p, int pairs, float c) {
  for (int i = 0; i < pairs; ++i) {
    c = std::fma(p.odd_a[i], p.odd_w[i], c);
    c = std::fma(p.even_a[i], p.even_w[i], c);
  }
  return c;
}

// Orders that the silicon must not have.
WITH_FMA float even_first(const Pairs& p, int pairs, float c) {
  for (int i = 0; i < pairs; ++i) {
    c = std::fma(p.even_a[i], p.even_w[i], c);
    c = std::fma(p.odd_a[i], p.odd_w[i], c);
  }
  return c;
}
WITH_FMA float pair_sums(const Pairs& p, int pairs, float c) {
  for (int i = 0; i < pairs; ++i) c += std::fma(p.even_a[i], p.even_w[i], p.odd_a[i] * p.odd_w[i]);
  return c;
}
WITH_FMA float even_then_odd_sum(const Pairs& p, int pairs, float c) {
  float e = 0.0f, o = 0.0f;
  for (int i = 0; i < pairs; ++i) {
    e = std::fma(p.even_a[i], p.even_w[i], e);
    o = std::fma(p.odd_a[i], p.odd_w[i], o);
  }
  return (c + e) + o;
}
WITH_FMA float odd_then_even_sum(const Pairs& p, int pairs, float c) {
  float e = 0.0f, o = 0.0f;
  for (int i = 0; i < pairs; ++i) {
    e = std::fma(p.even_a[i], p.even_w[i], e);
    o = std::fma(p.odd_a[i], p.odd_w[i], o);
  }
  return (c + o) + e;
}
WITH_FMA float chains_from_c(const Pairs& p, int pairs, float c) {
  float e = c, o = 0.0f;
  for (int i = 0; i < pairs; ++i) {
    e = std::fma(p.even_a[i], p.even_w[i], e);
    o = std::fma(p.odd_a[i], p.odd_w[i], o);
  }
  return e + o;
}
WITH_FMA float descending(const Pairs& p, int pairs, float c) {
  float e = 0.0f, o = 0.0f;
  for (int i = pairs - 1; i >= 0; --i) {
    e = std::fma(p.even_a[i], p.even_w[i], e);
    o = std::fma(p.odd_a[i], p.odd_w[i], o);
  }
  return c + (e + o);
}
WITH_FMA float rounded_once(const Pairs& p, int pairs, float c) {
  double sum = c;
  for (int i = 0; i < pairs; ++i) {
    sum += double{p.even_a[i]} * p.even_w[i];
    sum += double{p.odd_a[i]} * p.odd_w[i];
  }
  return static_cast<float>(sum);
}

/// Evaluates an order with MXCSR set to `mxcsr`.
class Mxcsr {
 public:
  explicit Mxcsr(unsigned value) : saved_(_mm_getcsr()) { _mm_setcsr(value); }
  ~Mxcsr() { _mm_setcsr(saved_); }
  Mxcsr(const Mxcsr&) = delete;
  Mxcsr& operator=(const Mxcsr&) = delete;

 private:
  unsigned saved_;
};

enum class Operands { kRandom, kNearFltMin, kCancellation, kWideExponents, kLast = kWideExponents };
const char* operands_name(Operands operands) {
  switch (operands) {
    case Operands::kRandom: return "random";
    case Operands::kNearFltMin: return "near FLT_MIN";
    case Operands::kCancellation: return "cancellation";
    case Operands::kWideExponents: return "wide exponents";
  }
  return "?";
}

class Generator {
 public:
  /// A bf16 with an exponent in [2^low, 2^high].
  bf16 value(int low, int high) {
    const uint64_t r = random_();
    const auto exponent =
        static_cast<uint32_t>(127 + low + static_cast<int>((r >> 16) % static_cast<uint64_t>(high - low + 1)));
    return bf16{static_cast<uint16_t>((r & 0x8000u) | (exponent << 7) | (r & 0x7fu))};
  }

  void fill(Tiles& t, Operands operands) {
    for (auto& row : t.a) fill_line(row, operands);
    for (auto& line : t.w) fill_line(line, operands);
    if (operands == Operands::kCancellation) {
      // Every term is followed, in its own chain or in the other one, by nearly its opposite.
      const int distance = random_() % 2 == 0 ? 1 : 2;
      for (auto& row : t.a) {
        for (int i = distance; i < 2 * kPairs; i += 2 * distance) {
          row[i] = bf16{static_cast<uint16_t>((row[i - distance].bits ^ 0x8000u) + (random_() & 1u))};
        }
      }
      for (int i = 0; i < kPairs; ++i) {
        for (int j = 0; j < kOutputs; ++j) {
          if (distance == 1) t.w[i][2 * j + 1] = t.w[i][2 * j];
          if (distance == 2 && i % 2 == 1) {
            t.w[i][2 * j] = t.w[i - 1][2 * j];
            t.w[i][2 * j + 1] = t.w[i - 1][2 * j + 1];
          }
        }
      }
    }
    for (auto& row : t.c) {
      for (float& c : row) {
        const bf16 start = operands == Operands::kNearFltMin ? value(-127, -124) : value(-4, 4);
        c = random_() % 4 == 0
                ? 0.0f
                : std::bit_cast<float>((uint32_t{start.bits} << 16) | static_cast<uint32_t>(random_() & 0xffffu));
      }
    }
  }

  int upto(int n) { return 1 + static_cast<int>(random_() % static_cast<uint64_t>(n)); }

 private:
  template <int n>
  void fill_line(bf16 (&line)[n], Operands operands) {
    for (bf16& x : line) {
      switch (operands) {
        case Operands::kRandom: x = value(-4, 1); break;
        case Operands::kCancellation: x = value(-2, 2); break;
        case Operands::kWideExponents: x = value(-30, 30); break;
        // Products around FLT_MIN = 2^-126, and now and then a subnormal (exponent -127) or a factor that makes one.
        case Operands::kNearFltMin: x = random_() % 16 == 0 ? value(-127, -125) : value(-65, -60); break;
      }
    }
  }

  std::mt19937_64 random_{20240607};
};

struct Candidate {
  const char* name;
  Order order;
  unsigned mxcsr;
};

constexpr unsigned kMasked = 0x1f80;   // MXCSR at reset: exceptions masked, round to nearest even
constexpr int kTilesPerKind = 4000;    // about 2.6 million outputs in all
constexpr int kTilesPerOtherTile = 7;  // for the other orders every seventh tile is enough

/// Runs `instruction` over many tiles, half of them with MXCSR's FTZ and DAZ, half without. The first candidate must
/// agree in every output, each other one must differ somewhere.
template <size_t n, typename Instruction>
void compare(const char* instruction_name, const Candidate (&candidates)[n], Instruction instruction) {
  Generator generator;
  int64_t differ[n] = {};
  int64_t outputs[n] = {};
  for (int kind = 0; kind <= static_cast<int>(Operands::kLast); ++kind) {
    const auto operands = static_cast<Operands>(kind);
    for (int tile = 0; tile < kTilesPerKind; ++tile) {
      alignas(64) Tiles before;
      generator.fill(before, operands);
      // Half of the tiles are full, the others have any number of rows, pairs and outputs.
      const bool full = tile % 2 == 0;
      const int rows = full ? kRows : generator.upto(kRows);
      const int pairs = full ? kPairs : generator.upto(kPairs);
      const int columns = full ? kOutputs : generator.upto(kOutputs);
      alignas(64) Tiles after = before;
      {
        const Mxcsr mode(tile % 4 < 2 ? kMasked | kFlush : kMasked);
        instruction(after, rows, pairs, columns);
      }
      for (size_t i = 0; i < (tile % kTilesPerOtherTile == 0 ? n : 1); ++i) {
        const Mxcsr mode(candidates[i].mxcsr);
        for (int row = 0; row < rows; ++row) {
          for (int column = 0; column < columns; ++column) {
            const float expected = candidates[i].order(terms(before, row, column), pairs, before.c[row][column]);
            differ[i] += std::bit_cast<uint32_t>(expected) != std::bit_cast<uint32_t>(after.c[row][column]);
          }
        }
        outputs[i] += int64_t{rows} * columns;
      }
    }
    CHECK_MESSAGE(differ[0] == 0, instruction_name, " is not ", candidates[0].name, " on ", operands_name(operands));
  }
  for (size_t i = 0; i < n; ++i) {
    std::printf("%s against %s: %lld of %lld outputs differ\n", instruction_name, candidates[i].name,
                static_cast<long long>(differ[i]), static_cast<long long>(outputs[i]));
    CHECK(outputs[i] > 100'000);
    if (i > 0)
      CHECK_MESSAGE(differ[i] > 0, "the operands do not tell ", candidates[0].name, " from ", candidates[i].name);
  }
}

TEST_CASE("TDPBF16PS adds in the order of Profile::kAmx") {
  if (!covers(detect_isa(), Isa::kAmxBf16)) {
    std::printf("skipped: this CPU has no AMX (or the system does not grant its tiles)\n");
    return;
  }
  const Candidate candidates[] = {
      {"Profile::kAmx", amx_order, kMasked | kFlush},
      {"Profile::kDp", dp_order, kMasked | kFlush},
      {"even first in one chain", even_first, kMasked | kFlush},
      {"c + even + odd", even_then_odd_sum, kMasked | kFlush},
      {"c + odd + even", odd_then_even_sum, kMasked | kFlush},
      {"the even chain starting at c", chains_from_c, kMasked | kFlush},
      {"descending pairs", descending, kMasked | kFlush},
      {"pair sums", pair_sums, kMasked | kFlush},
      {"one rounding", rounded_once, kMasked | kFlush},
      {"Profile::kAmx with subnormals", amx_order, kMasked},
  };
  compare("TDPBF16PS", candidates, [](Tiles& t, int rows, int pairs, int outputs) {
    configure(rows, pairs, outputs);
    tile_product(t);
  });
  release_tiles();
}

TEST_CASE("VDPBF16PS adds in the order of Profile::kDp") {
  if (!covers(detect_isa(), Isa::kAvx512Bf16)) {
    std::printf("skipped: this CPU has no AVX512_BF16\n");
    return;
  }
  const Candidate candidates[] = {
      {"Profile::kDp", dp_order, kMasked | kFlush},
      {"Profile::kAmx", amx_order, kMasked | kFlush},
      {"even first in one chain", even_first, kMasked | kFlush},
      {"pair sums", pair_sums, kMasked | kFlush},
      {"one rounding", rounded_once, kMasked | kFlush},
      {"Profile::kDp with subnormals", dp_order, kMasked},
  };
  compare("VDPBF16PS", candidates, [](Tiles& t, int rows, int pairs, int) {
    for (int row = 0; row < rows; ++row) {
      for (int pair = 0; pair < pairs; ++pair) dot_pairs(t, row, pair);
    }
  });
}

}  // namespace
}  // namespace cpuinfer::kernels
