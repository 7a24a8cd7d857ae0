// Which cases of a benchmark of a model fit together, and what is said of the others. Reads and measures nothing.
#include "bench/model.h"

#include <doctest/doctest.h>

#include "base/format.h"
#include "tests/engine/run/synthetic_engine.h"

using namespace cpuinfer;
using namespace cpuinfer::bench;

namespace {

ModelBenchOptions options_for(const CaseLists& cases, int64_t memory_limit_bytes = 0) {
  ModelBenchOptions options;
  options.engine.synthetic = run::small_model(1 << 20);
  options.engine.threads = 1;
  options.engine.memory_limit_bytes = memory_limit_bytes;
  options.cases = cases;
  return options;
}

ModelBench prepared(const CaseLists& cases, int64_t memory_limit_bytes = 0) {
  auto bench = ModelBench::prepare(options_for(cases, memory_limit_bytes));
  REQUIRE_MESSAGE(bench.has_value(), bench.error().message);
  return std::move(*bench);
}

int64_t bytes_of(const CaseLists& cases) { return prepared(cases).engine().plan().total(); }

CaseLists decode(std::vector<int64_t> depths, std::vector<int> batches) {
  return {.depths = std::move(depths), .batches = std::move(batches), .experts = {}, .prompts = {}, .decoded = 8};
}

}  // namespace

TEST_CASE("memory is the most that one case needs, not the product of the largest depth and batch") {
  // 262,144 tokens of one sequence and a page for each of 32: the cases of two runs, in one.
  CaseLists lists = decode({0}, {32});
  lists.prompts = {300};
  lists.depths = {0, 262144};
  lists.batches = {1, 32};
  const int64_t deep = 262144 + 300;
  const int64_t wide = 32 * (262144 + 256);  // a case of the lists
  CHECK(prepared(lists).engine().limits().context_tokens == wide);

  // Without the widest, the deepest decides.
  ModelBench bench = prepared(lists, bytes_of(decode({262144}, {32})) - 1);
  const auto cases = bench.cases();
  REQUIRE(cases.size() == 6);
  for (const PlannedCase& planned : cases) {
    CAPTURE(planned.test.name());
    CHECK(planned.refusal.has_value() == (planned.test.depth > 0 && planned.test.batch == 32));
  }
  CHECK(bench.engine().limits().context_tokens == round_up(deep, int64_t{256}));
  CHECK(bench.engine().limits().sequences == 32);
  CHECK(bench.engine().limits().rows == 300);
}

TEST_CASE("decode alone takes no rows of prefill") {
  CHECK(prepared(decode({0, 4096}, {1, 3})).engine().limits().rows == 3);
}

TEST_CASE("a case is refused with its own numbers, not with those of another") {
  // More experts need a larger workspace for the same cache.
  CaseLists lists = decode({0}, {8192});
  lists.experts = {1};
  const int64_t one = bytes_of(lists);
  lists.experts = {16};
  const int64_t sixteen = bytes_of(lists);
  REQUIRE(one < sixteen);
  lists.experts = {1, 16};
  ModelBench bench = prepared(lists, sixteen - 1);
  REQUIRE(bench.cases().size() == 2);
  CHECK_FALSE(bench.cases()[0].refusal.has_value());
  REQUIRE(bench.cases()[1].refusal.has_value());
  CHECK(*bench.cases()[1].refusal ==
        format("the plan needs {} and this process may take {}: 1 B short (--memory-limit)", format_bytes(sixteen),
               format_bytes(sixteen - 1)));
  CHECK(bench.engine().plan().total() == one);
}

TEST_CASE("cases that fit by themselves and not together: the smaller ones are kept") {
  // A deep case with its cache, many sequences with their rows and logits.
  const CaseLists wide = decode({0}, {1000});
  CaseLists both = wide;
  both.prompts = {1000};
  both.depths = {0, 260000};
  both.batches = {1000};
  // (0, b1000), (260000, b1000), pp1000, pp1000 at 260000.
  CaseLists deep = decode({260000}, {});
  deep.prompts = {1000};
  const int64_t deep_bytes = bytes_of(deep), wide_bytes = bytes_of(wide);
  const int64_t larger = std::max(deep_bytes, wide_bytes);
  ModelBench bench = prepared(both, larger);
  REQUIRE(bench.cases().size() == 4);
  const auto refusal = [&](int i) { return bench.cases()[static_cast<size_t>(i)].refusal.value_or(""); };
  CHECK(refusal(1).find("the plan needs ") != std::string::npos);
  CHECK_FALSE(refusal(1).starts_with("by itself"));
  CHECK(refusal(2) == "");
  const int dropped = deep_bytes > wide_bytes ? 3 : 0;
  CHECK(refusal(3 - dropped) == "");
  CHECK(refusal(dropped).starts_with("by itself it would fit, beside the other cases it does not (the plan needs "));
  CHECK(refusal(dropped).ends_with("(--memory-limit)): measure it in a run of its own"));
}

TEST_CASE("no case fits: the table of the smallest") {
  const auto bench = ModelBench::prepare(options_for(decode({0, 4096}, {1}), 1 << 20));
  REQUIRE_FALSE(bench.has_value());
  CHECK(bench.error().code == ErrorCode::kDoesNotFit);
  CHECK(bench.error().message.find("no case fits: take fewer --layers, a smaller --depth or --batch, or more memory") !=
        std::string::npos);
  // A page of 256 tokens, 128 bytes each.
  CHECK(bench.error().message.find("KV cache                    32.0 KiB") != std::string::npos);
}
