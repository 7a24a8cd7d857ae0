// The program within limits on its memory: a little below the plan it refuses with the numbers and the name of the
// limit, a little above it works, and the kernel kills nobody.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <optional>
#include <sstream>

#include "base/format.h"
#include "base/json.h"
#include "base/types.h"
#include "tests/tools/process.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;
namespace fs = std::filesystem;

namespace {

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

// 300 MB of weights, 192 MiB of KV cache.
const std::string& large_model() {
  static const std::string directory = [] {
    const fs::path config = scratch_directory() / "large.json";
    write_file(config, R"({"architectures":["Qwen3MoeForCausalLM"],"model_type":"qwen3_moe","hidden_size":1024,
      "num_hidden_layers":6,"num_attention_heads":8,"num_key_value_heads":4,"head_dim":128,"vocab_size":1536,
      "intermediate_size":96,"num_experts":16,"num_experts_per_tok":4,"moe_intermediate_size":512,
      "norm_topk_prob":true,"rms_norm_eps":1e-6,"tie_word_embeddings":false,"max_position_embeddings":16384,
      "rope_theta":10000.0})");
    const std::string path = (scratch_directory() / "large").string();
    const Outcome made = run_cpuinfer({"synth", "--config", config.string(), "-o", path, "--tokenizer",
                                       CPUINFER_SOURCE_DIR "/tests/data/tokenizer/small"});
    REQUIRE_MESSAGE(made.exit_code == 0, made.err);
    return path;
  }();
  return directory;
}

Arguments with_model(const Arguments& rest) {
  Arguments arguments = rest;
  arguments.insert(arguments.end(), {"-m", large_model(), "--ctx", "16k"});
  return arguments;
}

// What the plan needs, and what the process takes before it plans: what a limit allows less what it leaves.
struct Need {
  int64_t plan_bytes = 0, used_bytes = 0;
};

Need need_within(int64_t limit, const ProcessOptions& options) {
  const Outcome outcome = run_cpuinfer(with_model({"plan", "--json", "--node-bandwidth", "1GB/s"}), options);
  REQUIRE_MESSAGE((outcome.exit_code == 0 || outcome.exit_code == 78), outcome.err);
  const auto json = parse_json(outcome.out, "plan");
  REQUIRE(json);
  return {json->find("total_bytes")->as_int(), limit - json->find("available_bytes")->as_int()};
}

// Runs just below and just above what is needed. `options_for` makes the limit; `sentence` names it.
[[maybe_unused]] void check_around_the_plan(const std::function<ProcessOptions(int64_t)>& options_for,
                                            std::string_view sentence) {
  constexpr int64_t kGenerous = 2_GiB;
  const Need need = need_within(kGenerous, options_for(kGenerous));
  MESSAGE("the plan needs ", format_bytes(need.plan_bytes), ", ", format_bytes(need.used_bytes), " were used");
  REQUIRE(need.used_bytes > 0);
  REQUIRE(need.used_bytes < 1_GiB);
  const Arguments answer = with_model({"--prompt", "Hello there", "-n", "200", "--temp", "1", "--seed", "3"});

  // What is used varies a little: other pages of the program, the moment of the count.
  constexpr int64_t kMargin = 6_MiB;
  const Outcome below = run_cpuinfer(answer, options_for(need.plan_bytes + need.used_bytes - kMargin));
  CHECK_MESSAGE(below.exit_code == 78, below.err);
  CHECK(contains(below.err, "not enough memory, nothing was loaded\npurpose "));
  CHECK(contains(below.err, "it does not fit: the plan needs "));
  CHECK_MESSAGE(contains(below.err, sentence), below.err);
  CHECK(contains(below.err, " would fit"));
  CHECK_FALSE(contains(below.err, "loaded  "));

  for (const int64_t more : {kMargin, 64_MiB}) {
    const Outcome above = run_cpuinfer(answer, options_for(need.plan_bytes + need.used_bytes + more));
    CHECK_MESSAGE(above.exit_code == 0, above.err);
    CHECK_MESSAGE(contains(above.err, "; answer "), above.err);
  }
}

// A memory control group of its own, v1 or v2, without swap; removed at the end.
class ControlGroup {
 public:
  ControlGroup() {
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
      const size_t second = line.find(':', line.find(':') + 1);
      if (second == line.npos) continue;
      const fs::path own = fs::path(line.substr(second + 1)).relative_path();
      const std::string name = format("cpuinfer_test_{}", getpid());
      // In v2 a group that has processes gives no limits to groups in it: a neighbour then.
      if (contains(line.substr(0, second), "memory"))
        try_directory(fs::path("/sys/fs/cgroup/memory") / own / name, "memory.limit_in_bytes");
      else if (line.starts_with("0::"))
        try_directory(fs::path("/sys/fs/cgroup") / own.parent_path() / name, "memory.max");
      if (!directory_.empty()) return;
    }
  }
  ControlGroup(const ControlGroup&) = delete;
  ~ControlGroup() {
    std::error_code ignored;
    if (!directory_.empty()) fs::remove(directory_, ignored);  // rmdir: its files are no files
  }

  /// The most that was ever used in it; -1 if the system does not say.
  int64_t peak() const {
    std::ifstream file(directory_ / (limit_file_ == "memory.max" ? "memory.peak" : "memory.max_usage_in_bytes"));
    int64_t value = -1;
    file >> value;
    return value;
  }
  bool exists() const { return !directory_.empty(); }
  const fs::path& directory() const { return directory_; }
  bool set_limit(int64_t bytes) const {
    const fs::path file = directory_ / limit_file_;
    if (limit_file_ == "memory.max") write(directory_ / "memory.swap.max", 0);
    return write(file, bytes);
  }
  /// Processes that the kernel has killed in it; -1 if it does not say.
  int64_t kills() const {
    std::ifstream file(directory_ / (limit_file_ == "memory.max" ? "memory.events" : "memory.oom_control"));
    std::string key;
    int64_t value = 0;
    while (file >> key >> value)
      if (key == "oom_kill") return value;
    return -1;
  }

 private:
  static bool write(const fs::path& path, int64_t value) {
    std::ofstream file(path);
    file << value;
    file.close();
    return file.good();
  }
  void try_directory(const fs::path& path, const char* limit_file) {
    std::error_code error;
    if (!fs::create_directory(path, error) || error) return;
    if (fs::exists(path / limit_file) && write(path / limit_file, 8_GiB)) {
      directory_ = path;
      limit_file_ = limit_file;
    } else {
      fs::remove(path, error);
    }
  }

  fs::path directory_;
  std::string limit_file_;
};

}  // namespace

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

TEST_CASE("limits on memory") { MESSAGE("SKIPPED: a sanitizer needs memory and address space of its own"); }

#else

TEST_CASE("ulimit -v: refused just below the plan, works just above") {
  check_around_the_plan(
      [](int64_t bytes) {
        ProcessOptions options;
        options.resource_limits = {{RLIMIT_AS, bytes}};
        return options;
      },
      "(`ulimit -v` allows ");
}

TEST_CASE("ulimit -d: refused just below the plan, works just above") {
  check_around_the_plan(
      [](int64_t bytes) {
        ProcessOptions options;
        options.resource_limits = {{RLIMIT_DATA, bytes}};
        return options;
      },
      "(`ulimit -d` allows ");
}

TEST_CASE("no room for the stacks of the threads") {
  ProcessOptions options;
  options.resource_limits = {{RLIMIT_STACK, 64_MiB}, {RLIMIT_AS, 400_MiB}};
  const Outcome refused = run_cpuinfer({"-m", tiny_model(), "--prompt", "Hello", "-t", "8"}, options);
  CHECK(refused.exit_code == 78);
  CHECK(
      contains(refused.err, "there is no room for the stacks of 8 threads (`ulimit -v` allows 400.0 MiB of address "));
  CHECK(
      contains(refused.err, "; stacks of threads take 448.0 MiB more); use fewer threads, a smaller `ulimit -s`, or "));
  // With fewer there is, but not for all that the model needs.
  const Outcome fewer = run_cpuinfer({"-m", tiny_model(), "--prompt", "Hello", "-t", "1"}, options);
  CHECK(fewer.exit_code == 78);
  CHECK(contains(fewer.err, "not enough memory, nothing was loaded"));
}

TEST_CASE("a control group: refused just below the plan, works just above, nobody is killed") {
  const ControlGroup group;
  if (!group.exists()) {
    MESSAGE("SKIPPED: no memory control group can be made here (not root, or /sys/fs/cgroup is read-only)");
    return;
  }
  check_around_the_plan(
      [&](int64_t bytes) {
        REQUIRE(group.set_limit(bytes));
        ProcessOptions options;
        options.control_group = group.directory().string();
        return options;
      },
      format("(control group {} allows ", group.directory().string()));
  CHECK(group.kills() == 0);
  MESSAGE("the most that the group held: ", format_bytes(group.peak()));
  if (group.peak() >= 0) CHECK(group.peak() > 480_MiB);  // it was in there
  REQUIRE(group.set_limit(64_MiB));
  ProcessOptions inside;
  inside.control_group = group.directory().string();
  CHECK(run_cpuinfer(with_model({"--prompt", "Hello"}), inside).exit_code == 78);
}

#endif
