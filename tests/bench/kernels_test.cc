// The benchmark of the kernels finds wrong results and reports every figure. Not speed.
#include "bench/kernels.h"

#include <doctest/doctest.h>

#include <cmath>
#include <string_view>

#include "base/format.h"
#include "base/types.h"
#include "tests/bench/machine.h"

using namespace cpuinfer;
using namespace cpuinfer::bench;
using kernels::GemmKernel;
using kernels::Isa;
using kernels::Profile;

namespace {

GemmLimits limits() {
  return {.read = {&kernels::read_probes().back(), {1, 64_KiB, 0}},
          .peak = &kernels::peak_probes().back(),
          .seconds = 1e-4};
}

const GemmKernel& row_of(std::string_view name, Profile profile) {
  for (const GemmKernel& row : kernels::gemm_kernels())
    if (row.name == name && row.profile == profile) return row;
  FAIL("no such row");
  return kernels::gemm_kernels()[0];
}

GemmBenchOptions small(std::vector<int> rows) {
  return {.shapes = {{"square", 80, 96}}, .rows = std::move(rows), .seconds = 0.001, .weight_bytes = 1_MiB};
}

// Kernels with one fault each.
void last_output_wrong(const kernels::Gemm& g) noexcept {
  row_of("reference", Profile::kDp).run(g);
  float& last = g.c[(g.m - 1) * g.c_stride + g.n - 1];
  last = std::nextafter(last, 1e30f);
}
void nothing_written(const kernels::Gemm&) noexcept {}
void weights_swapped(const kernels::Gemm& g) noexcept {
  kernels::Gemm other = g;
  other.w = g.w + 32;  // the next pair of terms
  other.k = g.k - 32;
  row_of("reference", Profile::kDp).run(other);
}

void scale_add_forgets_last(const kernels::ScaleAdd& args) noexcept {
  kernels::ScaleAdd shorter = args;
  shorter.n -= 16;
  kernels::elementwise_kernels().back().scale_add(shorter);
}

}  // namespace

TEST_CASE("products of every kernel are timed and checked, however units fall on workers") {
  for (const auto& [threads, nodes] : {std::pair{1, 1}, {2, 1}, {3, 2}, {8, 1}}) {
    Setup s(threads, nodes);
    CAPTURE(threads);
    auto bench = GemmBench::create(*s.team, s.topology, small({1, 3, 33}));
    REQUIRE(bench.has_value());
    std::vector<const GemmKernel*> rows;
    for (const GemmKernel& row : kernels::gemm_kernels())
      if (kernels::covers(s.isa, row.needs)) rows.push_back(&row);
    const auto cells = bench->run(rows, limits());
    REQUIRE_MESSAGE(cells.has_value(), cells.error().message);
    const bool baseline = kernels::covers(s.isa, Isa::kAvx512);
    size_t expected = 0;
    for (const GemmKernel* row : rows) expected += is_slow_row(*row) ? 2 : 3;
    CHECK(cells->size() == expected);
    for (const GemmCell& cell : *cells) {
      CAPTURE(cell.kernel->name);
      CAPTURE(cell.m);
      CHECK(std::isfinite(cell.seconds));
      CHECK(cell.seconds > 0);
      CHECK(cell.flops == 2.0 * cell.m * 80 * 96);
      CHECK(cell.bytes == 2.0 * 80 * 96);
      // Up to 8 rows of up to 2 units of each worker that has units: 5 in all.
      CHECK(cell.checked >= std::min(cell.m, 8) * 16 * std::min(threads, 2));
      CHECK(cell.checked % (std::min(cell.m, 8) * 16) == 0);
      CHECK(cell.read_rate > 0);
      CHECK(cell.peak_rate > 0);
      if (baseline) CHECK(cell.onednn > 0);
    }
  }
}

TEST_CASE("a wrong result is found and named") {
  Setup s(1);
  auto bench = GemmBench::create(*s.team, s.topology, small({3}));
  REQUIRE(bench.has_value());
  struct Fault {
    const char* name;
    Profile profile;
    void (*run)(const kernels::Gemm&) noexcept;
    const char* where;
  };
  for (const Fault& fault : {Fault{"off by one bit", Profile::kDp, last_output_wrong, "row 2, output 79: "},
                             Fault{"idle", Profile::kDp, nothing_written, "row 0, output 0: nan instead of "},
                             Fault{"other order", Profile::kAmx, row_of("reference", Profile::kDp).run, "row "},
                             Fault{"swapped", Profile::kOneDnn, weights_swapped, "row "}}) {
    INFO(std::string(fault.name));
    const GemmKernel row{fault.name, Isa::kNone, fault.profile, 1, false, fault.run};
    const GemmKernel* const rows[] = {&row};
    const auto cells = bench->run(rows, limits());
    REQUIRE_FALSE(cells.has_value());
    CHECK(cells.error().code == ErrorCode::kInternal);
    const std::string& message = cells.error().message;
    CHECK(
        message.starts_with(format("kernel {} ({}) computes other results than the reference: square (80 x 96), M = 3",
                                   fault.name, kernels::profile_name(fault.profile))));
    CHECK_MESSAGE(message.find(fault.where) != std::string::npos, message);
    CHECK(message.ends_with("please report it"));
  }
  // Within rounding is good enough for oneDNN: the other profile's order is.
  const GemmKernel row{"rounding", Isa::kNone, Profile::kOneDnn, 1, false, row_of("reference", Profile::kAmx).run};
  const GemmKernel* const rows[] = {&row};
  CHECK(bench->run(rows, limits()).has_value());
}

TEST_CASE("elementwise kernels: figures, and wrong bits") {
  Setup s(1);
  std::vector<const kernels::ElementwiseKernels*> sets;
  for (const kernels::ElementwiseKernels& set : kernels::elementwise_kernels())
    if (kernels::covers(s.isa, set.needs)) sets.push_back(&set);
  const auto cells = measure_elementwise(*s.team, sets, 0.0002);
  REQUIRE_MESSAGE(cells.has_value(), cells.error().message);
  CHECK(cells->size() == 7 * sets.size());
  for (const ElementwiseCell& cell : *cells) {
    CHECK(cell.nanoseconds > 0);
    CHECK(cell.speedup > 0);
    if (cell.kernels == sets.back()) CHECK(cell.speedup == 1);
  }
  kernels::ElementwiseKernels broken = *sets.back();
  broken.name = "broken";
  broken.scale_add = scale_add_forgets_last;
  const kernels::ElementwiseKernels* const pair[] = {&broken, sets.back()};
  const auto wrong = measure_elementwise(*s.team, pair, 0.0002);
  REQUIRE_FALSE(wrong.has_value());
  CHECK(wrong.error().code == ErrorCode::kInternal);
  CHECK(wrong.error().message ==
        "scale_add of the kernels broken computes other bits than reference for 2048 elements; please report it");
}

TEST_CASE("shapes of the models") {
  const auto of_30b = kernel_shapes("30b");
  REQUIRE(of_30b.has_value());
  REQUIRE(of_30b->size() == 7);
  CHECK((*of_30b)[0].name == "30b qkv");
  CHECK((*of_30b)[0].n == 5120);
  CHECK((*of_30b)[0].k == 2048);
  CHECK((*of_30b)[1].k == 1024);
  CHECK((*of_30b)[3].n == 1536);
  CHECK((*of_30b)[4].k == 768);
  // The router's segment and attention are the same in both.
  CHECK(kernel_shapes("235b")->size() == 7);
  CHECK(kernel_shapes("all")->size() == 12);
  CHECK(kernel_shapes("7b").error().message == "unknown shapes '7b': expected one of 30b, 235b, all");
}

TEST_CASE("what cannot be measured is said") {
  Setup s(1);
  auto options = small({1});
  options.weight_bytes = 64_KiB;
  options.shapes[0] = {"large", 256, 256};
  const auto room = GemmBench::create(*s.team, s.topology, options);
  REQUIRE_FALSE(room.has_value());
  CHECK(room.error().code == ErrorCode::kUsage);
  CHECK(room.error().message == "64.0 KiB of weights have no room for large (256 x 256: 128.0 KiB)");
  const auto none = measure_kernels(*s.team, s.topology, Isa::kNone, {});
  REQUIRE_FALSE(none.has_value());
  CHECK(none.error().code == ErrorCode::kUnsupported);
}

TEST_CASE("every worker has weights to read, however many there are") {
  Setup s(300);  // 16 MiB are 256 units
  auto bench = GemmBench::create(
      *s.team, s.topology,
      {.shapes = {{"square", 80, 96}}, .rows = {1}, .seconds = 0.001, .weight_bytes = weight_bytes_for(*s.team, true)});
  REQUIRE(bench.has_value());
  for (const std::vector<ReadSpan>& spans : bench->memory().workers) {
    int64_t bytes = 0;
    for (const ReadSpan& span : spans) bytes += span.bytes;
    CHECK(bytes >= 64_KiB);
  }
}
