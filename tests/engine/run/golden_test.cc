// The engine against Hugging Face Transformers: for every golden, KL(float32 reference || cpuinfer) is no larger than
// KL(float32 reference || Transformers in bfloat16), or below 1e-5, and cpuinfer agrees with float32 on the most
// probable token at least as often as bfloat16 does.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "tests/engine/run/golden_cases.h"

using namespace cpuinfer;
using namespace cpuinfer::run;

namespace {

std::vector<double> log_softmax(std::span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  std::vector<double> result;
  for (const float logit : logits) result.push_back(logit - largest - std::log(sum));
  return result;
}

double kl_divergence(std::span<const float> reference, std::span<const float> logits) {
  const std::vector<double> p = log_softmax(reference), q = log_softmax(logits);
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) kl += std::exp(p[i]) * (p[i] - q[i]);
  return kl;
}

struct Agreement {
  double kl_mean = 0, top1 = 0;
};

Agreement compare(const GoldenCase& golden, std::span<const float> logits) {
  Agreement agreement;
  for (size_t i = 0; i < golden.positions.size(); ++i) {
    const std::span<const float> reference(golden.reference.data() + i * golden.vocab, golden.vocab);
    const std::span<const float> row = logits.subspan(golden.positions[i] * golden.vocab, golden.vocab);
    agreement.kl_mean += kl_divergence(reference, row);
    agreement.top1 += std::max_element(row.begin(), row.end()) - row.begin() == golden.top1_reference[i];
  }
  agreement.kl_mean /= static_cast<double>(golden.positions.size());
  agreement.top1 /= static_cast<double>(golden.positions.size());
  return agreement;
}

void check_profile(const char* numerics) {
  const auto goldens = load_golden_cases();
  REQUIRE_MESSAGE(goldens, (goldens ? "" : goldens.error().message));
  REQUIRE(goldens->size() >= 30);
  std::printf("numerics %s\n%-28s %12s %12s %10s %10s\n", numerics, "golden", "KL cpuinfer", "KL bf16", "top-1",
              "top-1 bf16");
  for (const GoldenCase& golden : *goldens) {
    CAPTURE(golden.name);
    CAPTURE(golden.covers);
    EngineOptions options;
    options.numerics = numerics;
    options.chunk_tokens = 64;
    auto engine = open_golden(golden, options);
    REQUIRE_MESSAGE(engine, (engine ? "" : engine.error().message));
    const auto logits = all_logits(**engine, golden.tokens);
    REQUIRE_MESSAGE(logits, (logits ? "" : logits.error().message));
    REQUIRE(logits->size() == golden.tokens.size() * golden.vocab);
    const Agreement agreement = compare(golden, *logits);
    std::printf("%-28s %12.3e %12.3e %10.4f %10.4f\n", golden.name.c_str(), agreement.kl_mean, golden.kl_bf16_mean,
                agreement.top1, golden.top1_bf16_agreement);
    CHECK(agreement.kl_mean <= std::max(golden.kl_bf16_mean, 1e-5));
    CHECK(agreement.top1 >= golden.top1_bf16_agreement);
  }
}

}  // namespace

TEST_CASE("every golden, numerics dp") { check_profile("dp"); }
TEST_CASE("every golden, numerics amx") { check_profile("amx"); }
