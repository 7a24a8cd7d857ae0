// Every row of the elementwise list against the reference, bit for bit: tails, zeroed padding, nothing written beyond,
// extreme values.
#include "tests/kernels/kernel_data.h"

using namespace cpuinfer;
using namespace cpuinfer::kernels;

namespace {

const ElementwiseKernels& reference() {
  const ElementwiseKernels& last = elementwise_kernels().back();
  REQUIRE(std::string_view(last.name) == "reference");
  return last;
}

std::vector<const ElementwiseKernels*> rows_to_compare() {
  std::vector<const ElementwiseKernels*> rows;
  for (const ElementwiseKernels& row : elementwise_kernels())
    if (&row != &reference() && runs_here(format("elementwise row {}", row.name), row.needs)) rows.push_back(&row);
  return rows;
}

/// Numbers a float can be at worst, then ordinary ones.
constexpr float kExtremes[] = {
    0.0f,
    -0.0f,
    1e-40f,
    -1e-40f,
    1.17549435e-38f,
    -1.17549435e-38f,
    3.4028235e38f,
    -3.4028235e38f,
    1e30f,
    -1e30f,
    88.0f,
    -88.0f,
    126.5f,
    -126.5f,
    127.0f,
    -127.0f,
    std::numeric_limits<float>::infinity(),
    -std::numeric_limits<float>::infinity(),
    std::numeric_limits<float>::quiet_NaN(),
};

enum class Fill { kUnit, kWide, kSubnormal, kExtreme };
constexpr Fill kFills[] = {Fill::kUnit, Fill::kWide, Fill::kSubnormal, Fill::kExtreme};

float draw(Random& random, Fill fill) {
  switch (fill) {
    case Fill::kUnit: return random.value(Values::kUnit) * 4.0f;
    case Fill::kWide: return random.value(Values::kWide);
    case Fill::kSubnormal: return random.value(Values::kTiny) * (random.integer(0, 1) != 0 ? 1.0f : 1e-18f);
    case Fill::kExtreme:
      return random.integer(0, 3) == 0 ? kExtremes[random.integer(0, static_cast<int>(std::size(kExtremes)) - 1)]
                                       : random.value(Values::kUnit);
  }
  return 0.0f;
}

GuardedBuffer<float> floats(Random& random, int count, Fill fill) {
  GuardedBuffer<float> buffer(count, kCanary);
  for (float& v : buffer) v = draw(random, fill);
  return buffer;
}

template <typename T>
void check_equal(const GuardedBuffer<T>& expected, const GuardedBuffer<T>& found, const std::string& what) {
  const int64_t at = first_difference(expected, found);
  if (at >= 0) {
    if constexpr (std::is_same_v<T, bf16>) {
      FAIL_CHECK(what << ": element " << at << " is " << to_float(found[at]) << ", the reference says "
                      << to_float(expected[at]));
    } else {
      FAIL_CHECK(what << ": element " << at << " is " << found[at] << ", the reference says " << expected[at]);
    }
  }
  CHECK_MESSAGE(found.before_intact(), what << ": wrote in front of its output");
}

bool padding_is_zero(const GuardedBuffer<bf16>& out, int n) {
  for (int64_t i = n; i < out.size(); ++i)
    if (out[i].bits != 0) return false;
  return true;
}

std::vector<int> lengths() {
  std::vector<int> n;
  for (int i = 1; i <= 70; ++i) n.push_back(i);
  n.insert(n.end(), {96, 128, 200, 256, 511, 768, 2048, 2050, 5120});
  return n;
}

}  // namespace

TEST_CASE("rms_norm rows equal the reference") {
  const FlushDenormals mode;
  for (const ElementwiseKernels* row : rows_to_compare()) {
    Random random(1);
    for (const int n : lengths()) {
      for (const Fill fill : kFills) {
        const GuardedBuffer<float> x = floats(random, n, fill);
        const GuardedBuffer<float> weight = floats(random, n, Fill::kUnit);
        const int out_count = round_up(n, 32) + 32 * random.integer(0, 1);
        GuardedBuffer<bf16> expected(out_count, kCanary16);
        GuardedBuffer<bf16> out(out_count, kCanary16);
        RmsNorm args{x.data(), weight.data(), n, 1e-6f, expected.data(), out_count};
        reference().rms_norm(args);
        args.out = out.data();
        row->rms_norm(args);
        check_equal(expected, out, format("{} rms_norm n={} fill={}", row->name, n, static_cast<int>(fill)));
        CHECK(padding_is_zero(out, n));
      }
    }
  }
}

TEST_CASE("norm_rope rows equal the reference, with and without the norm") {
  const FlushDenormals mode;
  for (const ElementwiseKernels* row : rows_to_compare()) {
    Random random(2);
    for (const int length : lengths()) {
      const int n = 2 * length;
      for (const Fill fill : kFills) {
        for (const bool norm : {false, true}) {
          const GuardedBuffer<float> x = floats(random, n, fill);
          const GuardedBuffer<float> weight = floats(random, n, Fill::kUnit);
          const GuardedBuffer<float> cos = floats(random, n / 2, Fill::kUnit);
          const GuardedBuffer<float> sin = floats(random, n / 2, Fill::kUnit);
          const int out_count = round_up(n, 32) + 32 * random.integer(0, 1);
          GuardedBuffer<bf16> expected(out_count, kCanary16);
          GuardedBuffer<bf16> out(out_count, kCanary16);
          NormRope args{x.data(), norm ? weight.data() : nullptr, cos.data(), sin.data(), n, 1e-6f, expected.data(),
                        out_count};
          reference().norm_rope(args);
          args.out = out.data();
          row->norm_rope(args);
          check_equal(expected, out,
                      format("{} norm_rope n={} norm={} fill={}", row->name, n, norm, static_cast<int>(fill)));
          CHECK(padding_is_zero(out, n));
        }
      }
    }
  }
}

TEST_CASE("silu_mul rows equal the reference") {
  const FlushDenormals mode;
  for (const ElementwiseKernels* row : rows_to_compare()) {
    Random random(3);
    for (int n = 8; n <= 808; n += n < 160 ? 8 : 104) {
      for (const Fill fill : kFills) {
        const GuardedBuffer<float> gate_up = floats(random, 2 * n, fill);
        const int out_count = n + 8 * random.integer(0, 5);
        GuardedBuffer<bf16> expected(out_count, kCanary16);
        GuardedBuffer<bf16> out(out_count, kCanary16);
        SiluMul args{gate_up.data(), n, expected.data(), out_count};
        reference().silu_mul(args);
        args.out = out.data();
        row->silu_mul(args);
        check_equal(expected, out, format("{} silu_mul n={} fill={}", row->name, n, static_cast<int>(fill)));
        CHECK(padding_is_zero(out, n));
      }
    }
  }
}

TEST_CASE("softmax_leaf rows equal the reference for every count of valid tokens") {
  const FlushDenormals mode;
  for (const ElementwiseKernels* row : rows_to_compare()) {
    Random random(4);
    for (int valid = 1; valid <= kLeafTokens; ++valid) {
      for (const Fill fill : kFills) {
        GuardedBuffer<float> scores = floats(random, round_up(valid, 16), fill);
        // Scores behind the valid ones belong to tokens that do not exist: anything, NaN included.
        for (int i = valid; i < scores.size(); ++i) scores[i] = i % 2 != 0 ? kCanary : 3e38f;
        const int probs_count = round_up(valid, 32) + 32 * random.integer(0, 1);
        GuardedBuffer<bf16> expected(probs_count, kCanary16);
        GuardedBuffer<bf16> probs(probs_count, kCanary16);
        float max[2] = {kCanary, kCanary};
        float sum[2] = {kCanary, kCanary};
        SoftmaxLeaf args{scores.data(), valid, 0.1275f, expected.data(), probs_count, &max[0], &sum[0]};
        reference().softmax_leaf(args);
        args.probs = probs.data();
        args.max = &max[1];
        args.sum = &sum[1];
        row->softmax_leaf(args);
        const std::string what = format("{} softmax_leaf valid={} fill={}", row->name, valid, static_cast<int>(fill));
        check_equal(expected, probs, what);
        // The largest of +0 and -0 is either; s - max is the same.
        CHECK_MESSAGE((max[0] == max[1] || same_bits(max[0], max[1])), what);
        CHECK_MESSAGE(same_bits(sum[0], sum[1]), what);
        CHECK(padding_is_zero(probs, valid));
      }
    }
  }
}

TEST_CASE("softmax_leaf rows survive scores that are all -infinity or NaN as the reference does") {
  const FlushDenormals mode;
  for (const ElementwiseKernels* row : rows_to_compare()) {
    for (const float score : {-std::numeric_limits<float>::infinity(), std::nanf("")}) {
      for (const int valid : {1, 16, 17, 200}) {
        const GuardedBuffer<float> scores(round_up(valid, 16), score);
        GuardedBuffer<bf16> expected(224, kCanary16);
        GuardedBuffer<bf16> probs(224, kCanary16);
        float max[2];
        float sum[2];
        reference().softmax_leaf({scores.data(), valid, 1.0f, expected.data(), 224, &max[0], &sum[0]});
        row->softmax_leaf({scores.data(), valid, 1.0f, probs.data(), 224, &max[1], &sum[1]});
        check_equal(expected, probs, format("{} softmax_leaf valid={} score={}", row->name, valid, score));
        CHECK(same_bits(max[0], max[1]));
        CHECK(same_bits(sum[0], sum[1]));
        CHECK(std::isnan(sum[1]));
      }
    }
  }
}

TEST_CASE("merge_partial rows equal the reference") {
  const FlushDenormals mode;
  for (const ElementwiseKernels* row : rows_to_compare()) {
    Random random(5);
    for (int n = 16; n <= 288; n += 16) {
      for (const Fill fill : kFills) {
        for (const bool empty_dst : {false, true}) {
          for (const bool empty_src : {false, true}) {
            GuardedBuffer<float> src = floats(random, n, fill);
            GuardedBuffer<float> src_before(n, kCanary);
            src_before.copy_from(src);
            GuardedBuffer<float> out[2] = {floats(random, n, fill), GuardedBuffer<float>(n, 0.0f)};
            out[1].copy_from(out[0]);
            float src_max = empty_src ? kCanary : random.uniform(-300.0f, 300.0f);
            float src_sum = empty_src ? 0.0f : random.uniform(1.0f, 256.0f);
            const float dst_max = empty_dst                   ? kCanary
                                  : random.integer(0, 3) == 0 ? src_max
                                                              : random.uniform(-300.0f, 300.0f);
            float max[2] = {dst_max, dst_max};
            const float dst_sum = empty_dst ? 0.0f : random.uniform(1.0f, 256.0f);
            float sum[2] = {dst_sum, dst_sum};
            reference().merge_partial({{&max[0], &sum[0], out[0].data()}, {&src_max, &src_sum, src.data()}, n});
            row->merge_partial({{&max[1], &sum[1], out[1].data()}, {&src_max, &src_sum, src.data()}, n});
            const std::string what = format("{} merge_partial n={} fill={} empty {} {}", row->name, n,
                                            static_cast<int>(fill), empty_dst, empty_src);
            check_equal(out[0], out[1], what);
            CHECK_MESSAGE(same_bits(max[0], max[1]), what);
            CHECK_MESSAGE(same_bits(sum[0], sum[1]), what);
            CHECK(first_difference(src, src_before) == -1);
          }
        }
      }
    }
  }
}

TEST_CASE("finish_attention rows equal the reference") {
  const FlushDenormals mode;
  for (const ElementwiseKernels* row : rows_to_compare()) {
    Random random(6);
    for (const int n : lengths()) {
      for (const Fill fill : kFills) {
        const GuardedBuffer<float> x = floats(random, n, fill);
        const float sum = fill == Fill::kExtreme ? draw(random, fill) : random.uniform(0.5f, 1000.0f);
        GuardedBuffer<bf16> expected(n, kCanary16);
        GuardedBuffer<bf16> out(n, kCanary16);
        reference().finish_attention({x.data(), sum, n, expected.data()});
        row->finish_attention({x.data(), sum, n, out.data()});
        check_equal(expected, out,
                    format("{} finish_attention n={} fill={} sum={}", row->name, n, static_cast<int>(fill), sum));
      }
    }
  }
}

TEST_CASE("scale_add rows equal the reference") {
  const FlushDenormals mode;
  for (const ElementwiseKernels* row : rows_to_compare()) {
    Random random(7);
    for (int n = 16; n <= 2048; n += n < 160 ? 16 : 272) {
      for (const Fill fill : kFills) {
        const GuardedBuffer<float> x = floats(random, n, fill);
        GuardedBuffer<float> expected = floats(random, n, fill);
        GuardedBuffer<float> y(n, kCanary);
        y.copy_from(expected);
        const float scale = random.uniform(-1.0f, 1.0f);
        reference().scale_add({x.data(), scale, expected.data(), n});
        row->scale_add({x.data(), scale, y.data(), n});
        check_equal(expected, y, format("{} scale_add n={} fill={}", row->name, n, static_cast<int>(fill)));
      }
    }
  }
}
