// cpuinfer bench as its users run it. Results, not speed.
#include <doctest/doctest.h>

#include <algorithm>

#include "base/format.h"
#include "base/json.h"
#include "base/types.h"
#include "tests/tools/process.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;

namespace {

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("bench host") {
  const std::string disk = scratch_directory().string();
  const Outcome json = run_cpuinfer({"bench", "host", "--quick", "--json", "--disk", disk, "-t", "2"});
  REQUIRE_MESSAGE(json.exit_code == 0, json.err);
  const auto figures = parse_json(json.out, "stdout");
  REQUIRE_MESSAGE(figures.has_value(), json.out);
  CHECK(figures->find("threads")->as_int() == 2);
  CHECK(figures->find("read")->find("gb_s")->as_double() > 0);
  CHECK(figures->find("disk")->find("gb_s")->as_double() > 0);
  CHECK(contains(figures->find("disk")->find("what")->as_string(), "a temporary file in " + disk));

  const Outcome text = run_cpuinfer({"bench", "host", "--quick", "--disk", disk, "-t", "1", "--isa", "avx2"});
  REQUIRE_MESSAGE(text.exit_code == 0, text.err);
  CHECK(contains(text.out, ": 1 thread on 1 node, avx2\n"));
  CHECK(contains(text.out, "read bandwidth"));
  CHECK(contains(text.out, "fp32 FMA (avx2)"));
  CHECK_FALSE(contains(text.out, "vdpbf16ps"));
  for (const auto& entry : std::filesystem::directory_iterator(disk))
    CHECK_FALSE(contains(entry.path().string(), "cpuinfer-bench"));

  // The model's own files, by its directory. 9 MiB: more than one block.
  const auto model = scratch_directory() / "model";
  std::filesystem::create_directories(model);
  write_file(model / "model.safetensors", std::string(9_MiB, 'x'));
  const Outcome of_model = run_cpuinfer({"bench", "host", "--quick", "-m", model.string()});
  REQUIRE_MESSAGE(of_model.exit_code == 0, of_model.err);
  CHECK(contains(of_model.out, format("1 safetensors file of {} (9.0 MiB)", model.string())));
}

TEST_CASE("bench host: what it cannot do") {
  const auto fails = [](const Arguments& arguments, int code, std::string_view message) {
    const Outcome outcome = run_cpuinfer(arguments);
    CHECK(outcome.exit_code == code);
    CHECK_MESSAGE(contains(outcome.err, message), outcome.err);
    CHECK(outcome.out.empty());
  };
  fails({"bench", "host", "--quick", "--disk", "/does/not/exist"}, 66, "cannot make a file in /does/not/exist");
  fails({"bench", "host", "--quick", "-m", "/does/not/exist"}, 66, "/does/not/exist");
  fails({"bench", "host", "--quick", "--isa", "reference"}, 78, "the measurements need avx2");
  fails({"bench", "host", "--quick", "--isa", "mmx"}, 2, "unknown instruction set level");
  fails({"bench", "host", "--buffer", "1024", "-t", "1"}, 2, "is too small");
  fails({"bench", "host", "--buffer", "1000TiB", "-t", "1"}, 78, "ask for smaller ones");
  fails({"bench", "host", "-t", "1", "--simulate-nodes", "2"}, 2, "1 threads cannot serve 2 nodes");
  fails({"bench", "host", "--nodes", "1000"}, 2, "--simulate-nodes 1000 pretends that there are more");
  fails({"bench", "kernels", "--nodes", "999-1000"}, 2, "node 999 does not exist or may not be used; this machine has");
  fails({"bench", "load", "-m", CPUINFER_SOURCE_DIR "/models/demo", "--cores", "9999"}, 2,
        "CPU 9999 does not exist or may not be used");
  fails({"bench"}, 2, "bench needs a name: one of host");
}

TEST_CASE("bench host: Ctrl-C ends it and leaves no file") {
  const auto disk = scratch_directory() / "disk";
  std::filesystem::create_directories(disk);
  Terminal terminal({"bench", "host", "--disk", disk.string(), "--buffer", "64M"});
  REQUIRE(terminal.expect(" left"));  // the bar of the progress
  terminal.type("\x03");
  CHECK(terminal.expect("interrupted while measuring"));
  CHECK(terminal.finish() == 130);
  CHECK_FALSE(contains(terminal.screen(), "read bandwidth"));
  CHECK(std::filesystem::is_empty(disk));
}

TEST_CASE("bench kernels") {
  const Outcome json = run_cpuinfer({"bench", "kernels", "--quick", "--json"});
  REQUIRE_MESSAGE(json.exit_code == 0, json.err);
  const auto figures = parse_json(json.out, "stdout");
  REQUIRE_MESSAGE(figures.has_value(), json.out);
  CHECK(figures->find("threads")->as_int() == 1);
  const double read = figures->find("read_gb_s")->as_double();
  CHECK(read > 0);
  double peak = 0;
  for (const Json& row : figures->find("peaks")->as_array()) peak = std::max(peak, row.find("gflop_s")->as_double());
  CHECK(peak > 0);
  bool reference = false;
  for (const Json& row : figures->find("gemm")->as_array()) {
    const double gb_s = row.find("gb_s")->as_double();
    const double gflop_s = row.find("gflop_s")->as_double();
    CHECK(row.find("checked")->as_int() > 0);
    CHECK(gb_s > 0);
    CHECK(row.find("read_share")->as_double() == doctest::Approx(gb_s / row.find("read_gb_s")->as_double()));
    CHECK(row.find("peak_share")->as_double() == doctest::Approx(gflop_s / row.find("peak_gflop_s")->as_double()));
    // A weight of two bytes is two operations per row.
    CHECK(gflop_s == doctest::Approx(gb_s * static_cast<double>(row.find("m")->as_int())));
    CHECK(gb_s * row.find("us")->as_double() * 1e3 ==
          doctest::Approx(2.0 * static_cast<double>(row.find("n")->as_int() * row.find("k")->as_int())));
    if (row.find("kernel")->as_string() == "reference") {
      reference = true;
      CHECK(row.find("m")->as_int() <= 4);
    }
  }
  CHECK(reference);
  CHECK(figures->find("elementwise")->as_array().size() >= 7);

  const Outcome text =
      run_cpuinfer({"bench", "kernels", "--quick", "--kernel", "portable", "--m", "2", "--isa", "avx2", "-t", "2"});
  REQUIRE_MESSAGE(text.exit_code == 0, text.err);
  CHECK(contains(text.out, ": 2 threads, avx2\n"));
  CHECK(contains(text.out, "portable (dp)"));
  CHECK(contains(text.out, "rms_norm"));
  CHECK_FALSE(contains(text.out, "reference (dp)"));
  CHECK_FALSE(contains(text.out, "avx512"));

  const auto fails = [](const Arguments& arguments, int code, std::string_view message) {
    const Outcome outcome = run_cpuinfer(arguments);
    CHECK(outcome.exit_code == code);
    CHECK_MESSAGE(contains(outcome.err, message), outcome.err);
    CHECK(outcome.out.empty());
  };
  fails({"bench", "kernels", "--m", "1,65536"}, 2, "--m is '65536'; it must be a whole number between 1 and 4096");
  fails({"bench", "kernels", "--quick", "--kernel", "cuda"}, 2, "unknown kernel \"cuda\": expected one of amx-tile, ");
  fails({"bench", "kernels", "--quick", "--kernel", "avx512-dp", "--isa", "avx2"}, 78,
        "avx512-dp (dp): needs avx512 avx512_bf16, this run may use avx2");
  fails({"bench", "kernels", "--quick", "--isa", "reference"}, 78, "the measurements need avx2");
}
