// Every row of the GEMM list against the reference, bit for bit within its numeric profile.
#include "tests/kernels/kernel_data.h"

using namespace cpuinfer;
using namespace cpuinfer::kernels;

namespace {

/// Rows of the same-bits promise that run here; says which do not.
std::vector<const GemmKernel*> rows_to_compare() {
  std::vector<const GemmKernel*> rows;
  for (const GemmKernel& row : gemm_kernels()) {
    if (row.profile == Profile::kOneDnn || std::string_view(row.name) == "reference") continue;
    if (runs_here(format("GEMM row {} ({})", row.name, profile_name(row.profile)), row.needs)) rows.push_back(&row);
  }
  return rows;
}

/// The rows that still agree; those that differ are reported and left out.
void compare(const Product& product, uint32_t seed, std::vector<const GemmKernel*>& rows) {
  const ProductData data(product, seed);
  for (const Profile profile : {Profile::kDp, Profile::kAmx}) {
    GuardedBuffer<float> expected(data.c().size(), kCanary);
    data.run(reference_gemm(profile), expected);
    std::erase_if(rows, [&](const GemmKernel* row) {
      if (row->profile != profile) return false;
      GuardedBuffer<float> c(data.c().size(), kCanary);
      data.run(*row, c);
      const int64_t at = first_difference(expected, c);
      const int64_t stride = product.n + product.c_extra;
      const std::string where =
          at < 0 ? ""
                 : format("{} ({}): {}: c[{}, {}] is {}, the reference says {}", row->name, profile_name(profile),
                          product.name(), at / stride, at % stride, c[at], expected[at]);
      CHECK_MESSAGE(at == -1, where);
      CHECK_MESSAGE(c.before_intact(), row->name << ": " << product.name() << ": wrote in front of c");
      return at != -1;
    });
  }
}

}  // namespace

TEST_CASE("GEMM rows equal the reference bit for bit: all remainders of m, n and k") {
  const FlushDenormals mode;
  std::vector<const GemmKernel*> rows = rows_to_compare();
  std::vector<int> ms;
  for (int m = 1; m <= 40; ++m) ms.push_back(m);
  ms.insert(ms.end(), {48, 64, 100, 129});
  constexpr int kTerms[] = {32, 64, 96, 128, 160, 224, 512, 2048};
  constexpr int kOutputs[] = {16, 32, 48, 64, 80, 96, 112, 176};
  uint32_t seed = 1;
  for (const int m : ms) {
    for (const int k : kTerms) {
      ++seed;
      // Decimation of the cross product: seed walks through the other dimensions at different speeds.
      const int n = k == 2048 && m > 40 ? 32 : kOutputs[(seed * 5 + static_cast<uint32_t>(m)) % 8];
      compare({m, n, k, 32 * static_cast<int>(seed % 3), 32 * static_cast<int>(seed / 2 % 3),
               16 * static_cast<int>(seed / 3 % 3), seed / 4 % 2 == 0, seed / 5 % 2 == 0, kAllValues[seed / 3 % 4]},
              seed, rows);
    }
  }
}

TEST_CASE("GEMM rows equal the reference bit for bit: groups of units, pieces of K, and what is left over") {
  const FlushDenormals mode;
  std::vector<const GemmKernel*> rows = rows_to_compare();
  uint32_t seed = 500;
  for (const int m : {1, 5, 8, 9, 14, 29})
    for (const int n : {80, 112, 208, 256, 272})
      for (const int k : {256, 2048}) compare({m, n, k, 0, 0, 0, false, false, Values::kUnit}, ++seed, rows);
}

TEST_CASE("GEMM rows equal the reference bit for bit: every kind of value, with and without each option") {
  const FlushDenormals mode;
  std::vector<const GemmKernel*> rows = rows_to_compare();
  uint32_t seed = 1000;
  for (const Values values : kAllValues)
    for (const int m : {1, 2, 3, 5, 16, 17, 33})
      for (const bool permuted : {false, true})
        for (const bool accumulate : {false, true})
          for (const int extra : {0, 32})
            compare({m, 80, 192, extra, 4 * extra, extra, permuted, accumulate, values}, ++seed, rows);
}

TEST_CASE("GEMM rows equal the reference bit for bit: model shapes") {
  const FlushDenormals mode;
  std::vector<const GemmKernel*> rows = rows_to_compare();
  uint32_t seed = 2000;
  // k of: hidden 2048, 4096, 5120; moe_intermediate 768; head_dim 128; a leaf of 256 tokens; intermediate 12288
  for (const int k : {2048, 4096, 5120, 768, 128, 256, 12288})
    for (const int m : {1, 4, 8, 19}) compare({m, 48, k, 0, 0, 0, false, false, Values::kUnit}, ++seed, rows);
  // A KV page of 256 tokens: scores (n = 256, k = 128) and values (n = 128, k = 256, fewer terms than the unit holds).
  for (const int m : {1, 8, 32, 100}) {
    compare({m, 256, 128, 0, 0, 0, false, false, Values::kUnit}, ++seed, rows);
    for (const int k : {32, 96, 256})
      compare({m, 128, k, 256 - k, 16 * (256 - k), 0, false, true, Values::kUnit}, ++seed, rows);
  }
}

TEST_CASE("GEMM rows agree with the reference about infinities and NaN") {
  const FlushDenormals mode;
  const float infinity = std::numeric_limits<float>::infinity();
  for (const GemmKernel* row : rows_to_compare()) {
    for (const float special : {infinity, -infinity, std::nanf("")}) {
      for (const int m : {1, 3, 18}) {
        const int n = 48;
        const int k = 64;
        GuardedBuffer<bf16> a(m * k, bf16{0x3f80});
        GuardedBuffer<bf16> w(n * k, bf16{0x3f80});
        GuardedBuffer<float> expected(m * n, 0.0f);
        GuardedBuffer<float> c(m * n, 0.0f);
        a[(m - 1) * k + 37] = to_bf16(special);
        w[5] = bf16{0};  // w of output 2, term 1
        Gemm g{m, n, k, a.data(), k, nullptr, w.data(), 16 * k, expected.data(), n, false};
        reference_gemm(row->profile).run(g);
        g.c = c.data();
        row->run(g);
        CHECK_MESSAGE(first_difference(expected, c) == -1, row->name << ": m=" << m << " value " << special);
        CHECK(same_bits(c[(m - 1) * n], special));
        if (m > 1) CHECK(c[0] == k);
      }
    }
  }
}
