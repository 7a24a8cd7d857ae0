// The oneDNN row: another order of summation, so a tolerance instead of equal bits.
#include "kernels/onednn/onednn.h"

#include <thread>

#include "base/log.h"
#include "tests/kernels/kernel_data.h"

extern "C" int omp_get_max_threads();  // of libgomp; clang comes without <omp.h>

using namespace cpuinfer;
using namespace cpuinfer::kernels;

namespace {

const GemmKernel& onednn() {
  for (const GemmKernel& row : gemm_kernels())
    if (row.profile == Profile::kOneDnn) return row;
  ENSURE(false, "the list has a oneDNN row");
}

void check_close(const Product& product, uint32_t seed) {
  const ProductData data(product, seed);
  GuardedBuffer<float> c(data.c().size(), kCanary);
  data.run(onednn(), c);
  CHECK(c.before_intact());
  float max_a = 0.0f;
  float max_w = 0.0f;
  for (int i = 0; i < product.k; ++i) {
    for (int r = 0; r < product.m; ++r) max_a = std::max(max_a, std::fabs(data.a(r, i)));
    for (int j = 0; j < product.n; ++j) max_w = std::max(max_w, std::fabs(data.w(j, i)));
  }
  const int stride = product.n + product.c_extra;
  for (int r = 0; r < product.m; ++r) {
    for (int j = 0; j < product.n; ++j) {
      double expected = product.accumulate ? data.c()[int64_t{r} * stride + j] : 0.0;
      // k additions of terms no larger than max|a| * max|w|, each rounded; one more for accumulate.
      const double tolerance = 0x1p-23 * (product.k + 1) * (max_a * max_w + std::fabs(expected));
      for (int i = 0; i < product.k; ++i) expected += double{data.a(r, i)} * data.w(j, i);
      const float found = c[int64_t{r} * stride + j];
      CHECK_MESSAGE(std::fabs(found - expected) <= tolerance,
                    product.name() << ": c[" << r << ", " << j << "] is " << found << ", expected " << expected);
    }
    for (int j = product.n; j < stride; ++j)
      CHECK(std::bit_cast<uint32_t>(c[int64_t{r} * stride + j]) == std::bit_cast<uint32_t>(kCanary));
  }
}

}  // namespace

TEST_CASE("the oneDNN row is within the bound of float32 summation, with every option") {
  if (!runs_here("GEMM row onednn", onednn().needs)) return;
  const FlushDenormals mode;
  uint32_t seed = 1;
  for (const int m : {1, 2, 7, 16, 33})
    for (const int k : {32, 96, 512})
      for (const bool permuted : {false, true})
        for (const bool accumulate : {false, true})
          for (const int extra : {0, 32})
            check_close({m, 80, k, extra, 16 * extra, extra, permuted, accumulate, Values::kUnit}, ++seed);
  check_close({3, 128, 2048, 0, 0, 0, false, false, Values::kUnit}, ++seed);
}

TEST_CASE("the oneDNN row leaves the caller's number of OpenMP threads alone, and runs in several threads") {
  if (!runs_here("GEMM row onednn", onednn().needs)) return;
  const int before = omp_get_max_threads();
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 3; ++t)
    threads.emplace_back([t] {
      const FlushDenormals mode;
      for (uint32_t i = 0; i < 5; ++i) {
        const ProductData data({4, 64, 128, 0, 0, 0, false, false, Values::kUnit}, 10 * t + i);
        GuardedBuffer<float> c(data.c().size(), kCanary);
        GuardedBuffer<float> reference(data.c().size(), kCanary);
        data.run(onednn(), c);
        data.run(reference_gemm(Profile::kDp), reference);
        for (int64_t at = 0; at < c.size(); ++at) CHECK(std::fabs(c[at] - reference[at]) < 0x1p-22 * 129);
      }
    });
  for (std::thread& thread : threads) thread.join();
  check_close({4, 64, 128, 0, 0, 0, false, false, Values::kUnit}, 99);
  CHECK(omp_get_max_threads() == before);
}

TEST_CASE("the oneDNN row survives more shapes than it keeps primitives for") {
  if (!runs_here("GEMM row onednn", onednn().needs)) return;
  const FlushDenormals mode;
  for (int m = 1; m <= 520; ++m) {
    const ProductData data({m, 16, 32, 0, 0, 0, false, false, Values::kUnit}, static_cast<uint32_t>(m));
    GuardedBuffer<float> c(data.c().size(), kCanary);
    data.run(onednn(), c);
    CHECK(std::isfinite(c[c.size() - 1]));
  }
}

// ctest runs this case in a process of its own, in which oneDNN may not use AVX-512 and so has no bf16.
TEST_CASE("where oneDNN fails, the row says so once and computes with the reference") {
  if (std::getenv("DNNL_MAX_CPU_ISA") == nullptr) {
    MESSAGE("SKIPPED: oneDNN fails only if DNNL_MAX_CPU_ISA=AVX2 is in the environment (ctest: onednn_failure_test)");
    return;
  }
  const FlushDenormals mode;
  std::vector<std::string> lines;
  set_log_sink([&](LogLevel level, std::string_view line) {
    CHECK(level == LogLevel::kWarn);
    lines.emplace_back(line);
  });
  for (const bool accumulate : {false, true}) {
    const ProductData data({3, 32, 64, 0, 0, 16, true, accumulate, Values::kUnit}, 1);
    GuardedBuffer<float> c(data.c().size(), kCanary);
    GuardedBuffer<float> expected(data.c().size(), kCanary);
    data.run(onednn(), c);
    data.run(reference_gemm(Profile::kDp), expected);
    CHECK(first_difference(c, expected) == -1);
  }
  set_log_sink(nullptr);
  REQUIRE(lines.size() == 1);
  CHECK(lines[0].starts_with("oneDNN failed (could not create a "));
  CHECK(lines[0].ends_with("): its products are computed by the reference kernel"));
}
