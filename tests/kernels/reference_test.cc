// The reference kernels against the formulas in double precision, with tolerances derived from the contract.
#include <vector>

#include "tests/kernels/kernel_data.h"

using namespace cpuinfer;
using namespace cpuinfer::kernels;

namespace {

constexpr double kEpsilon = 0x1p-24;     // half an ulp of binary32
constexpr double kBf16Epsilon = 0x1p-8;  // an ulp of bf16, relative: twice the rounding, room for float32 noise

const ElementwiseKernels& reference() { return elementwise_kernels().back(); }

double relative_error(double found, double expected) { return std::fabs(found - expected) / std::fabs(expected); }

}  // namespace

TEST_CASE("reference GEMM: both profiles within the bound of float32 summation") {
  const FlushDenormals mode;
  uint32_t seed = 1;
  for (const Profile profile : {Profile::kDp, Profile::kAmx}) {
    for (const int k : {32, 64, 512, 2048}) {
      for (const bool accumulate : {false, true}) {
        const Product product{5, 32, k, 32, 32, 16, true, accumulate, Values::kUnit};
        const ProductData data(product, ++seed);
        GuardedBuffer<float> c(data.c().size(), kCanary);
        data.run(reference_gemm(profile), c);
        for (int r = 0; r < product.m; ++r) {
          for (int j = 0; j < product.n; ++j) {
            const int64_t at = r * (product.n + product.c_extra) + j;
            double sum = accumulate ? data.c()[at] : 0.0;
            double magnitude = std::fabs(sum);
            for (int i = 0; i < k; ++i) {
              const double term = double{data.a(r, i)} * data.w(j, i);
              sum += term;
              magnitude += std::fabs(term);
            }
            // Higham 2002, 3.1: |error| <= gamma(k + 1) * sum |a||w|.
            CHECK(std::fabs(c[at] - sum) <= 1.01 * (k + 1) * kEpsilon * magnitude);
          }
        }
      }
    }
  }
}

TEST_CASE("reference GEMM: the profiles are the documented orders, and differ") {
  const FlushDenormals mode;
  // One row, one unit, k = 64; the chains are written out once more, for one output.
  int differing = 0;
  for (uint32_t seed = 1; seed <= 100; ++seed) {
    // Tiny operands tell a fused multiply-add from a product that is flushed to zero before it is added.
    const Product product{1, 16, 64, 0, 0, 0, false, false, seed % 2 == 0 ? Values::kWide : Values::kTiny};
    const ProductData data(product, seed);
    GuardedBuffer<float> dp(16, 0.0f);
    GuardedBuffer<float> amx(16, 0.0f);
    data.run(reference_gemm(Profile::kDp), dp);
    data.run(reference_gemm(Profile::kAmx), amx);
    for (int j = 0; j < 16; ++j) {
      float c = 0.0f;
      for (int i = 0; i < 64; i += 2) {
        c = std::fma(data.a(0, i + 1), data.w(j, i + 1), c);
        c = std::fma(data.a(0, i), data.w(j, i), c);
      }
      CHECK(same_bits(c, dp[j]));
      float total = 0.0f;
      for (int tile = 0; tile < 64; tile += 32) {
        float even = 0.0f;
        float odd = 0.0f;
        for (int i = tile; i < tile + 32; i += 2) {
          even = std::fma(data.a(0, i), data.w(j, i), even);
          odd = std::fma(data.a(0, i + 1), data.w(j, i + 1), odd);
        }
        total += even + odd;
      }
      CHECK(same_bits(total, amx[j]));
      differing += dp[j] != amx[j] ? 1 : 0;
    }
  }
  CHECK(differing > 200);  // the operands tell the orders apart
}

TEST_CASE("GEMM kernels flush subnormal operands and results") {
  const FlushDenormals mode;
  GuardedBuffer<bf16> a(32, bf16{0});
  GuardedBuffer<bf16> w(512, bf16{0});
  GuardedBuffer<float> c(16, kCanary);
  const Gemm g{1, 16, 32, a.data(), 32, nullptr, w.data(), 512, c.data(), 16, false};
  for (const Profile profile : {Profile::kDp, Profile::kAmx}) {
    a[0] = bf16{0x0001};  // subnormal times 2^120
    w[0] = to_bf16(0x1p120f);
    reference_gemm(profile).run(g);
    CHECK(c[0] == 0.0f);
    a[0] = to_bf16(0x1p-80f);  // 2^-140 is subnormal
    w[0] = to_bf16(0x1p-60f);
    reference_gemm(profile).run(g);
    CHECK(std::bit_cast<uint32_t>(c[0]) == 0);
  }
}

TEST_CASE("reference rms_norm") {
  const FlushDenormals mode;
  Random random(1);
  for (const int n : {1, 31, 128, 2048}) {
    std::vector<float> x;
    std::vector<float> weight;
    double squares = 0.0;
    for (int i = 0; i < n; ++i) {
      x.push_back(random.uniform(-2.0f, 2.0f));
      weight.push_back(random.uniform(0.1f, 2.0f));
      squares += double{x.back()} * x.back();
    }
    std::vector<bf16> out(static_cast<size_t>(round_up(n, 32)), kCanary16);
    reference().rms_norm({x.data(), weight.data(), n, 1e-6f, out.data(), static_cast<int>(out.size())});
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = x[i] / std::sqrt(squares / n + 1e-6) * weight[i];
      CHECK(relative_error(to_float(out[i]), expected) < kBf16Epsilon);
    }
  }
}

TEST_CASE("reference norm_rope rotates pairs that are half a head apart") {
  const FlushDenormals mode;
  Random random(2);
  const int n = 128;
  std::vector<float> x;
  std::vector<float> weight;
  std::vector<float> cos;
  std::vector<float> sin;
  double squares = 0.0;
  for (int i = 0; i < n; ++i) {
    x.push_back(random.uniform(-2.0f, 2.0f));
    weight.push_back(random.uniform(0.1f, 2.0f));
    squares += double{x.back()} * x.back();
  }
  for (int i = 0; i < n / 2; ++i) {
    const float angle = random.uniform(0.0f, 6.28f);
    cos.push_back(std::cos(angle));
    sin.push_back(std::sin(angle));
  }
  for (const bool norm : {false, true}) {
    std::vector<bf16> out(static_cast<size_t>(n), kCanary16);
    reference().norm_rope({x.data(), norm ? weight.data() : nullptr, cos.data(), sin.data(), n, 1e-6f, out.data(), n});
    const double r = norm ? 1.0 / std::sqrt(squares / n + 1e-6) : 1.0;
    for (size_t i = 0; i < 64; ++i) {
      const double first = x[i] * r * (norm ? weight[i] : 1.0f);
      const double second = x[i + 64] * r * (norm ? weight[i + 64] : 1.0f);
      const double scale = std::fabs(first) + std::fabs(second);  // the difference may cancel
      CHECK(std::fabs(to_float(out[i]) - (first * cos[i] - second * sin[i])) <= kBf16Epsilon * scale);
      CHECK(std::fabs(to_float(out[i + 64]) - (second * cos[i] + first * sin[i])) <= kBf16Epsilon * scale);
    }
  }
}

TEST_CASE("reference silu_mul reads 8 gates, then their 8 ups") {
  const FlushDenormals mode;
  Random random(3);
  std::vector<float> gate_up;
  for (int i = 0; i < 96; ++i) gate_up.push_back(random.uniform(-20.0f, 20.0f));
  std::vector<bf16> out(64, kCanary16);
  reference().silu_mul({gate_up.data(), 48, out.data(), 64});
  for (size_t j = 0; j < 48; ++j) {
    const double gate = gate_up[j / 8 * 16 + j % 8];
    const double up = gate_up[j / 8 * 16 + 8 + j % 8];
    CHECK(relative_error(to_float(out[j]), gate / (1.0 + std::exp(-gate)) * up) < kBf16Epsilon);
  }
  for (size_t j = 48; j < 64; ++j) CHECK(out[j].bits == 0);
}

TEST_CASE("reference softmax_leaf, merge_partial and finish_attention make a softmax over any split") {
  const FlushDenormals mode;
  Random random(4);
  const float scale = 0.125f * kLog2e;
  const int tokens = 700;
  std::vector<float> scores;
  std::vector<float> values;
  for (int i = 0; i < tokens + 16; ++i) scores.push_back(random.uniform(-30.0f, 30.0f));
  for (int i = 0; i < tokens; ++i) values.push_back(random.uniform(-1.0f, 1.0f));

  double largest = -1e30;
  for (int i = 0; i < tokens; ++i) largest = std::max(largest, scores[static_cast<size_t>(i)] * 0.125);
  double denominator = 0.0;
  double numerator = 0.0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double p = std::exp(scores[i] * 0.125 - largest);
    denominator += p;
    numerator += p * values[i];
  }

  float max = 0.0f;
  float sum = 0.0f;
  std::vector<float> out(16, kCanary);
  for (int begin = 0; begin < tokens; begin += kLeafTokens) {
    const int valid = std::min(kLeafTokens, tokens - begin);
    std::vector<bf16> probs(kLeafTokens);
    float leaf_max = 0.0f;
    float leaf_sum = 0.0f;
    reference().softmax_leaf({scores.data() + begin, valid, scale, probs.data(), kLeafTokens, &leaf_max, &leaf_sum});
    std::vector<float> leaf_out(16, 0.0f);
    for (int i = 0; i < valid; ++i)
      leaf_out[3] += to_float(probs[static_cast<size_t>(i)]) * values[static_cast<size_t>(begin + i)];
    reference().merge_partial({{&max, &sum, out.data()}, {&leaf_max, &leaf_sum, leaf_out.data()}, 16});
  }
  CHECK(relative_error(sum, denominator * std::exp(largest - max / kLog2e)) < 1e-5);
  std::vector<bf16> result(16);
  reference().finish_attention({out.data(), sum, 16, result.data()});
  // Probabilities are rounded to bf16, each by at most 2^-9; then the result once more.
  CHECK(std::fabs(to_float(result[3]) - numerator / denominator) < kBf16Epsilon);
  CHECK(to_float(result[0]) == 0.0f);
}

TEST_CASE("reference scale_add is one fused multiply-add") {
  const FlushDenormals mode;
  std::vector<float> x(16, 1.0f + 0x1p-23f);
  std::vector<float> y(16, -1.0f);
  reference().scale_add({x.data(), 1.0f - 0x1p-23f, y.data(), 16});
  CHECK(y[7] == -0x1p-46f);  // a rounded product would give 0
}

TEST_CASE("exp2_scalar: relative error below 2^-23 over its whole range") {
  const FlushDenormals mode;
  double worst = 0.0;
  const auto look = [&](float x) {
    const double error = relative_error(exp2_scalar(x), std::exp2(double{x}));
    if (!(error <= worst)) worst = error;
  };
  for (double x = -126.0; x <= 127.0; x += 0x1p-14) look(static_cast<float>(x));
  for (float x = -1.0f; x <= 1.0f; x += 0x1p-20f) look(x);
  for (uint32_t bits = 0x2f000000u; bits < 0x42fe0000u; bits += 997) {  // small magnitudes, all significands
    look(std::bit_cast<float>(bits));
    if (bits < 0x42fc0000u) look(-std::bit_cast<float>(bits));
  }
  MESSAGE("worst relative error of exp2: 2^" << std::log2(worst));
  CHECK(worst < 0x1p-23);
}

TEST_CASE("exp2_scalar: exact and limiting values") {
  const FlushDenormals mode;
  const float infinity = std::numeric_limits<float>::infinity();
  for (int i = -126; i <= 127; ++i) CHECK(exp2_scalar(static_cast<float>(i)) == std::ldexp(1.0f, i));
  CHECK(exp2_scalar(-0.0f) == 1.0f);
  CHECK(exp2_scalar(1e-40f) == 1.0f);
  CHECK(exp2_scalar(infinity) == 0x1p127f);
  CHECK(exp2_scalar(200.0f) == 0x1p127f);
  CHECK(exp2_scalar(3e38f) == 0x1p127f);
  CHECK(std::bit_cast<uint32_t>(exp2_scalar(-infinity)) == 0);
  CHECK(std::bit_cast<uint32_t>(exp2_scalar(std::nextafter(-126.0f, -127.0f))) == 0);
  CHECK(std::bit_cast<uint32_t>(exp2_scalar(-3e38f)) == 0);
  CHECK(std::isnan(exp2_scalar(std::nanf(""))));
  CHECK(std::isnan(exp2_scalar(-std::nanf(""))));
}

TEST_CASE("exp2_scalar: where two pieces meet, the step down is at most the error bound") {
  const FlushDenormals mode;
  for (int i = -126; i < 127; ++i) {
    const float edge = static_cast<float>(i) + 0.5f;
    const float below = exp2_scalar(std::nextafter(edge, -1000.0f));
    const float above = exp2_scalar(std::nextafter(edge, 1000.0f));
    CHECK(above >= below * (1.0f - 0x1p-22f));
    CHECK(exp2_scalar(edge) >= below * (1.0f - 0x1p-22f));
  }
}
