// The machine's figures in one go, and their reports: every figure is there, and the table says what the JSON says.
#include "bench/host.h"

#include <doctest/doctest.h>

#include <cmath>

#include "base/format.h"
#include "base/types.h"
#include "bench/host_report.h"
#include "tests/bench/machine.h"

using namespace cpuinfer;
using namespace cpuinfer::bench;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

double number(const Json& json, const char* key) {
  const Json* found = json.find(key);
  REQUIRE_MESSAGE(found != nullptr, key);
  REQUIRE_MESSAGE(found->is_number(), key);
  return found->as_double();
}

void check_positive(double value) {
  CHECK(std::isfinite(value));
  CHECK(value > 0);
}

}  // namespace

TEST_CASE("all figures, as JSON and as text") {
  const numa::Topology topology = machine();
  const auto team = make_team(topology, 2, 2);
  HostOptions options;
  options.effort = Effort::kQuick;
  options.disk_directory = ".";
  std::string stages;
  const HostWatch watch{.cancel = nullptr, .progress = [&](const char* what, double) {
                          if (!stages.ends_with(what)) stages += format(" {}", what);
                        }};
  const auto figures = measure_host(*team, topology, kernels::detect_isa(), options, watch);
  REQUIRE_MESSAGE(figures.has_value(), figures.error().message);
  CHECK(stages == " memory peaks barriers disk");

  const auto json = parse_json(to_json_text(host_json(*figures)), "report");
  REQUIRE(json.has_value());
  const std::string text = host_text(*figures);
  CHECK(number(*json, "threads") == 2);
  CHECK(number(*json, "nodes") == 2);
  CHECK(contains(
      text, format("{}: 2 threads on 2 nodes, {}\n", json->find("cpu")->as_string(), json->find("isa")->as_string())));
  check_positive(number(*json, "buffer_bytes"));

  const Json& read = *json->find("read");
  const double best = number(read, "gb_s");
  check_positive(best);
  CHECK(contains(text, format("{:<22} {:>10.2f} GB/s", "read bandwidth", best)));
  REQUIRE(read.find("node_gb_s")->as_array().size() == 2);
  for (const Json& node : read.find("node_gb_s")->as_array()) {
    check_positive(node.as_double());
    CHECK(contains(text, format("{:>10.2f} GB/s\n", node.as_double())));
  }
  CHECK(read.find("sweep")->as_array().size() == figures->read.entries.size());
  bool best_is_there = false;
  for (const Json& entry : read.find("sweep")->as_array()) {
    check_positive(number(entry, "gb_s"));
    CHECK(number(entry, "gb_s") <= best);
    best_is_there |= number(entry, "gb_s") == best;
    CHECK(contains(text, format(" {:.2f}", number(entry, "gb_s"))));
  }
  CHECK(best_is_there);
  CHECK(contains(text, format("{:.2f}*", best)));
  CHECK(json->find("memories")->as_array().size() == 2);

  REQUIRE_FALSE(json->find("peaks")->as_array().empty());
  for (const Json& peak : json->find("peaks")->as_array()) {
    check_positive(number(peak, "gflop_s"));
    check_positive(number(peak, "one_worker_gflop_s"));
    CHECK(contains(text, format("{:<22} {:>10.1f} GFLOP/s   one thread alone {:.1f}\n", peak.find("name")->as_string(),
                                number(peak, "gflop_s"), number(peak, "one_worker_gflop_s"))));
  }
  for (const Json& barrier : json->find("barriers")->as_array()) {
    check_positive(number(barrier, "ns"));
    CHECK(contains(text, format("{:<22} {:>10.0f} ns\n", barrier.find("name")->as_string(), number(barrier, "ns"))));
  }
  const Json& disk = *json->find("disk");
  check_positive(number(disk, "gb_s"));
  CHECK(contains(text, format("{:<22} {:>10.2f} GB/s", "disk, sequential", number(disk, "gb_s"))));
  CHECK(contains(text, disk.find("what")->as_string() + "; " + disk.find("cache")->as_string()));
  for (const Json& entry : disk.find("sweep")->as_array()) CHECK(number(entry, "gb_s") <= number(disk, "gb_s"));
  CHECK(host_summary(*figures).starts_with(format("read {:.1f} GB/s; ", best)));
}

TEST_CASE("without a disk, on one thread") {
  const numa::Topology topology = machine();
  const auto team = make_team(topology, 1, 1);
  HostOptions options;
  options.effort = Effort::kQuick;
  options.buffer_bytes = 1_MiB;
  const auto figures = measure_host(*team, topology, kernels::Isa::kAvx2, options);
  REQUIRE_MESSAGE(figures.has_value(), figures.error().message);
  CHECK(host_json(*figures).find("disk")->is_null());
  CHECK(figures->buffer_bytes == 1_MiB);
  CHECK(figures->peaks.size() == 1);
  const std::string text = host_text(*figures);
  CHECK_FALSE(contains(text, "disk"));
  CHECK_FALSE(contains(text, "one thread alone"));
  CHECK_FALSE(contains(text, "of node"));
}

TEST_CASE("what cannot be measured is said") {
  const numa::Topology topology = machine();
  const auto team = make_team(topology, 2, 1);
  HostOptions options;
  options.effort = Effort::kQuick;
  const auto error = [&](kernels::Isa isa, ErrorCode code) {
    const auto figures = measure_host(*team, topology, isa, options);
    REQUIRE_FALSE(figures.has_value());
    CHECK(figures.error().code == code);
    return figures.error().message;
  };
  CHECK(error(kernels::Isa::kNone, ErrorCode::kUnsupported) ==
        "the measurements need avx2, but this run may use none: ask for a higher level or none");
  options.buffer_bytes = 64_KiB;
  CHECK(error(kernels::Isa::kAvx2, ErrorCode::kUsage) ==
        "a buffer of 64.0 KiB per node is too small: 2 workers read 64 KiB each at least, which takes 128.0 KiB");
  options.buffer_bytes = int64_t{1} << 50;
  CHECK(error(kernels::Isa::kAvx2, ErrorCode::kDoesNotFit).starts_with("2 buffers of "));
}
