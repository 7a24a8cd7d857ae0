#include "kernels/pack.h"

#include <cmath>

#include "tests/kernels/kernel_data.h"

using namespace cpuinfer;
using namespace cpuinfer::kernels;

namespace {

/// Where the layout of pack.h puts term `k` of output `n` of a matrix with `terms` terms: spelled out independently.
int64_t packed_index(int n, int k, int terms) {
  return int64_t{n / 16} * 16 * terms + k / 32 * 512 + k % 32 / 2 * 32 + n % 16 * 2 + k % 2;
}

struct Source {
  std::vector<std::byte> bytes;
  const std::byte* rows[kUnitOutputs];
};

/// 16 rows of k elements, each at an odd address, row 3 missing. fill(row, i) gives the bits of an element.
template <typename T, typename Fill>
Source source(int k, Fill fill) {
  Source s;
  const size_t stride = static_cast<size_t>(k) * sizeof(T) + 3;
  s.bytes.resize(16 * stride + 1);
  for (int j = 0; j < kUnitOutputs; ++j) {
    std::byte* row = s.bytes.data() + 1 + static_cast<size_t>(j) * stride;
    for (int i = 0; i < k; ++i) {
      const T value = fill(j, i);
      std::memcpy(row + static_cast<size_t>(i) * sizeof(T), &value, sizeof(T));
    }
    s.rows[j] = j == 3 ? nullptr : row;
  }
  return s;
}

/// IEEE binary16 in double: the definition.
double half_value(uint16_t half) {
  const int exponent = half >> 10 & 31;
  const int fraction = half & 0x3ff;
  const double sign = (half & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return fraction != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

}  // namespace

TEST_CASE("pack_unit puts every bf16 where the layout says, pads with zeros, and unpack_output reads it back") {
  for (const int k : {1, 2, 31, 32, 33, 63, 64, 100, 768}) {
    for (const int extra_tiles : {0, 1}) {
      const int k_padded = round_up(k, 32) + 32 * extra_tiles;
      const Source s = source<uint16_t>(k, [](int j, int i) { return static_cast<uint16_t>(j * 1000 + i + 1); });
      GuardedBuffer<bf16> unit(unit_elements(k_padded), kCanary16);
      pack_unit(s.rows, DType::kBF16, k, k_padded, unit.data());
      CHECK(unit.before_intact());
      bool equal = true;
      for (int j = 0; j < kUnitOutputs; ++j) {
        for (int i = 0; i < k_padded; ++i) {
          const int expected = j == 3 || i >= k ? 0 : j * 1000 + i + 1;
          equal = equal && unit[packed_index(j, i, k_padded)].bits == expected;
        }
      }
      CHECK_MESSAGE(equal, "k=" << k << " k_padded=" << k_padded);
      std::vector<bf16> back(static_cast<size_t>(k));
      for (int j = 0; j < kUnitOutputs; ++j) {
        unpack_output(unit.data(), j, k, back.data());
        for (int i = 0; i < k; ++i)
          equal = equal && back[static_cast<size_t>(i)].bits == (j == 3 ? 0 : j * 1000 + i + 1);
      }
      CHECK_MESSAGE(equal, "unpacked, k=" << k);
    }
  }
}

TEST_CASE("pack_unit keeps bf16 weights as they are: subnormals, infinities, NaN") {
  const FlushDenormals mode;
  const uint16_t bits[] = {0x0001, 0x8001, 0x7f80, 0xff80, 0x7fc1, 0xff81, 0x8000, 0x7f7f};
  const Source s = source<uint16_t>(40, [&](int j, int i) { return bits[(i + j) % 8]; });
  GuardedBuffer<bf16> unit(unit_elements(64), kCanary16);
  pack_unit(s.rows, DType::kBF16, 40, 64, unit.data());
  for (int j = 0; j < kUnitOutputs; ++j)
    for (int i = 0; i < 40; ++i)
      if (j != 3) CHECK(unit[packed_index(j, i, 64)].bits == bits[(i + j) % 8]);
}

TEST_CASE("pack_unit converts every F16 value") {
  const FlushDenormals mode;  // conversion works on integers: the mode must not matter
  // 65536 values as 16 rows of 4096; row 3 is skipped, so the rows are packed twice in different order. Then so that
  // neighbours are of different kinds: 40503 is odd, so its multiples are all 16-bit numbers.
  const int k = 4096;
  for (const auto& [shift, factor] : {std::pair{0, 1u}, {8, 1u}, {0, 40503u}, {8, 40503u}}) {
    const auto value_at = [&](int j, int i) {
      return static_cast<uint16_t>(static_cast<unsigned>((j + shift) % 16 * k + i) * factor);
    };
    const Source s = source<uint16_t>(k, value_at);
    GuardedBuffer<bf16> unit(unit_elements(k), kCanary16);
    pack_unit(s.rows, DType::kF16, k, k, unit.data());
    int wrong = 0;
    for (int j = 0; j < kUnitOutputs; ++j) {
      if (j == 3) continue;
      for (int i = 0; i < k; ++i) {
        const double value = half_value(value_at(j, i));
        const bf16 found = unit[packed_index(j, i, k)];
        // Every binary16 is a normal binary32 or zero, so float(value) is exact.
        if (!same_bits(found, to_bf16(static_cast<float>(value)))) ++wrong;
        if (std::isfinite(value) && std::fabs(to_float(found) - value) > std::fabs(value) * 0x1p-8) ++wrong;
      }
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("pack_unit rounds F32 to nearest even") {
  const uint32_t bits[] = {0x3f808000, 0x3f818000, 0x3f808001, 0x7f7fffff,
                           0x00400000, 0x80400000, 0x7f800001, 0xff800000};
  const uint16_t rounded[] = {0x3f80, 0x3f82, 0x3f81, 0x7f80, 0x0000, 0x8000, 0x7fc0, 0xff80};
  const Source s = source<uint32_t>(50, [&](int j, int i) { return bits[(i + j) % 8]; });
  GuardedBuffer<bf16> unit(unit_elements(64), kCanary16);
  pack_unit(s.rows, DType::kF32, 50, 64, unit.data());
  for (int j = 0; j < kUnitOutputs; ++j)
    for (int i = 0; i < 64; ++i)
      CHECK(unit[packed_index(j, i, 64)].bits == (j == 3 || i >= 50 ? 0 : rounded[(i + j) % 8]));
}

TEST_CASE("pack_unit converts rows of any length as to_bf16 does") {
  const FlushDenormals mode;
  Random random(4);
  std::vector<uint32_t> bits(16 * 70);
  for (uint32_t& value : bits)
    value = static_cast<uint32_t>(random.integer(0, 0xffff) << 16 | random.integer(0, 0xffff));
  for (const int k : {1, 3, 7, 8, 9, 15, 17, 31, 32, 39, 63, 70}) {
    const int k_padded = round_up(k, 32);
    const Source s = source<uint32_t>(k, [&](int j, int i) { return bits[static_cast<size_t>(j * 70 + i)]; });
    GuardedBuffer<bf16> unit(unit_elements(k_padded), kCanary16);
    pack_unit(s.rows, DType::kF32, k, k_padded, unit.data());
    CHECK(unit.before_intact());
    int wrong = 0;
    for (int j = 0; j < kUnitOutputs; ++j) {
      for (int i = 0; i < k_padded; ++i) {
        const bf16 expected =
            j == 3 || i >= k ? bf16{} : to_bf16(std::bit_cast<float>(bits[static_cast<size_t>(j * 70 + i)]));
        if (unit[packed_index(j, i, k_padded)].bits != expected.bits) ++wrong;
      }
    }
    CHECK_MESSAGE(wrong == 0, "k=" << k);
  }
}

TEST_CASE("store_key makes the page that pack_unit would: n = tokens, k = head_dim") {
  for (const int head_dim : {32, 64, 96, 128}) {
    std::vector<bf16> keys(static_cast<size_t>(kLeafTokens * head_dim));
    Random random(1);
    for (bf16& key : keys) key = random.value16(Values::kUnit);
    GuardedBuffer<bf16> stored(page_half_elements(head_dim), kCanary16);
    GuardedBuffer<bf16> packed(page_half_elements(head_dim), kCanary16);
    for (int slot = kLeafTokens - 1; slot >= 0; --slot)
      store_key(stored.data(), slot, keys.data() + slot * head_dim, head_dim);
    for (int unit = 0; unit < kLeafTokens / 16; ++unit) {
      const std::byte* rows[kUnitOutputs];
      for (int j = 0; j < 16; ++j)
        rows[j] = reinterpret_cast<const std::byte*>(keys.data() + (unit * 16 + j) * head_dim);
      pack_unit(rows, DType::kBF16, head_dim, head_dim, packed.data() + unit * unit_elements(head_dim));
    }
    CHECK(first_difference(stored, packed) == -1);
    CHECK(stored.before_intact());
  }
}

TEST_CASE("store_value makes the page that pack_unit would: n = head_dim, k = tokens") {
  for (const int head_dim : {32, 64, 96, 128}) {
    std::vector<bf16> values(static_cast<size_t>(kLeafTokens * head_dim));
    std::vector<bf16> transposed(values.size());
    Random random(2);
    for (int t = 0; t < kLeafTokens; ++t) {
      for (int d = 0; d < head_dim; ++d) {
        const bf16 value = random.value16(Values::kUnit);
        values[static_cast<size_t>(t * head_dim + d)] = value;
        transposed[static_cast<size_t>(d * kLeafTokens + t)] = value;
      }
    }
    GuardedBuffer<bf16> stored(page_half_elements(head_dim), kCanary16);
    GuardedBuffer<bf16> packed(page_half_elements(head_dim), kCanary16);
    for (int slot = kLeafTokens - 1; slot >= 0; --slot)
      store_value(stored.data(), slot, values.data() + slot * head_dim, head_dim);
    for (int unit = 0; unit < head_dim / 16; ++unit) {
      const std::byte* rows[kUnitOutputs];
      for (int j = 0; j < 16; ++j)
        rows[j] = reinterpret_cast<const std::byte*>(transposed.data() + (unit * 16 + j) * kLeafTokens);
      pack_unit(rows, DType::kBF16, kLeafTokens, kLeafTokens, packed.data() + unit * unit_elements(kLeafTokens));
    }
    CHECK(first_difference(stored, packed) == -1);
    CHECK(stored.before_intact());
  }
}

TEST_CASE("a product with a stored page is a score, and with its values an output") {
  const FlushDenormals mode;
  const int head_dim = 64;
  Random random(3);
  GuardedBuffer<bf16> page(2 * page_half_elements(head_dim), bf16{0});
  bf16* const keys = page.data();
  bf16* const values = page.data() + page_half_elements(head_dim);
  GuardedBuffer<bf16> vectors(2 * head_dim, bf16{0});
  for (bf16& v : vectors) v = random.value16(Values::kUnit);
  store_key(keys, 77, vectors.data(), head_dim);
  store_value(values, 77, vectors.data() + head_dim, head_dim);

  GuardedBuffer<float> scores(kLeafTokens, kCanary);
  reference_gemm(Profile::kDp)
      .run({1, kLeafTokens, head_dim, vectors.data(), head_dim, nullptr, keys, unit_elements(head_dim), scores.data(),
            kLeafTokens, false});
  double expected = 0.0;
  for (int i = 0; i < head_dim; ++i) expected += double{to_float(vectors[i])} * to_float(vectors[i]);
  CHECK(scores[77] == doctest::Approx(expected));
  CHECK(scores[76] == 0.0f);

  GuardedBuffer<bf16> probs(kLeafTokens, bf16{0});
  probs[77] = to_bf16(0.5f);
  GuardedBuffer<float> out(head_dim, kCanary);
  reference_gemm(Profile::kAmx)
      .run({1, head_dim, kLeafTokens, probs.data(), kLeafTokens, nullptr, values, unit_elements(kLeafTokens),
            out.data(), head_dim, false});
  for (int i = 0; i < head_dim; ++i) CHECK(out[i] == 0.5f * to_float(vectors[head_dim + i]));
}
