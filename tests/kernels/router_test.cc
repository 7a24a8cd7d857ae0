#include <algorithm>
#include <numeric>

#include "tests/kernels/kernel_data.h"

using namespace cpuinfer;
using namespace cpuinfer::kernels;

namespace {

struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Choice choose(const std::vector<float>& logits, int chosen, bool normalize) {
  Choice choice;
  const int experts = static_cast<int>(logits.size());
  GuardedBuffer<int32_t> ids(chosen, -7);
  GuardedBuffer<float> weights(chosen, kCanary);
  GuardedBuffer<float> scratch(experts, kCanary);
  route({logits.data(), experts, chosen, normalize, ids.data(), weights.data(), scratch.data()});
  CHECK(ids.before_intact());
  CHECK(weights.before_intact());
  CHECK(scratch.before_intact());
  choice.ids.assign(ids.begin(), ids.end());
  choice.weights.assign(weights.begin(), weights.end());
  return choice;
}

/// Softmax over all, then a full sort: in double precision.
Choice naive(const std::vector<float>& logits, int chosen, bool normalize) {
  const float max = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p;
  double total = 0.0;
  for (const float logit : logits) {
    p.push_back(std::exp(double{logit} - max));
    total += p.back();
  }
  Choice choice;
  choice.ids.resize(logits.size());
  std::iota(choice.ids.begin(), choice.ids.end(), 0);
  const auto logit_of = [&](int32_t id) { return logits[static_cast<size_t>(id)]; };
  std::stable_sort(choice.ids.begin(), choice.ids.end(),
                   [&](int32_t a, int32_t b) { return logit_of(a) > logit_of(b); });
  choice.ids.resize(static_cast<size_t>(chosen));
  std::sort(choice.ids.begin(), choice.ids.end());
  double sum = 0.0;
  for (const int32_t id : choice.ids) sum += p[static_cast<size_t>(id)];
  for (const int32_t id : choice.ids)
    choice.weights.push_back(static_cast<float>(p[static_cast<size_t>(id)] / (normalize ? sum : total)));
  return choice;
}

}  // namespace

TEST_CASE("route agrees with a naive softmax and sort") {
  const FlushDenormals mode;
  Random random(1);
  for (const int experts : {1, 2, 7, 16, 60, 128, 512}) {
    for (const int chosen : {1, 2, 8, 16, experts}) {
      if (chosen > experts) continue;
      for (const bool normalize : {false, true}) {
        std::vector<float> logits;
        for (int i = 0; i < experts; ++i) logits.push_back(random.uniform(-8.0f, 8.0f));
        const Choice found = choose(logits, chosen, normalize);
        const Choice expected = naive(logits, chosen, normalize);
        CHECK(found.ids == expected.ids);
        for (size_t i = 0; i < expected.weights.size(); ++i)
          CHECK(found.weights[i] == doctest::Approx(expected.weights[i]).epsilon(1e-5));
      }
    }
  }
}

TEST_CASE("route: ties go to the lower index, and ids ascend") {
  const FlushDenormals mode;
  CHECK(choose({1, 5, 1, 5, 5, 1}, 2, true).ids == std::vector<int32_t>{1, 3});
  CHECK(choose({1, 5, 1, 5, 5, 1}, 4, true).ids == std::vector<int32_t>{0, 1, 3, 4});
  CHECK(choose(std::vector<float>(128, 0.25f), 8, true).ids == std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7});
  CHECK(choose({0, 0, 9, 0, 8, 0, 7}, 3, true).ids == std::vector<int32_t>{2, 4, 6});
  // Far below the largest, probabilities underflow to zero and tie.
  CHECK(choose({-300, 0, -200, -100}, 3, false).ids == std::vector<int32_t>{0, 1, 2});
}

TEST_CASE("route: weights belong to their experts, and sum to one only if normalized") {
  const FlushDenormals mode;
  const std::vector<float> logits = {2.0f, -1.0f, 3.0f, 0.0f};
  const Choice plain = choose(logits, 2, false);
  const Choice normalized = choose(logits, 2, true);
  CHECK(plain.ids == std::vector<int32_t>{0, 2});
  CHECK(plain.weights[1] > plain.weights[0]);
  CHECK(plain.weights[0] + plain.weights[1] < 0.97f);
  CHECK(normalized.weights[0] + normalized.weights[1] == doctest::Approx(1.0));
  CHECK(normalized.weights[0] / normalized.weights[1] == doctest::Approx(std::exp(-1.0)).epsilon(1e-5));
}

TEST_CASE("route: NaN and infinite logits give distinct ids in range, and weights that show it") {
  const FlushDenormals mode;
  const float nan = std::nanf("");
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<std::vector<float>> cases = {
      std::vector<float>(16, nan),
      {1, nan, 3, nan, 5, 6, 7, 8},
      {nan, 1, 2, 3, 4, 5, 6, nan},
      std::vector<float>(8, -infinity),
      {infinity, 1, 2, infinity, 3, 4, 5, 6},
      {-nan, infinity, -infinity, 0, 1, 2, 3, 4},
  };
  for (const std::vector<float>& logits : cases) {
    for (int chosen = 1; chosen <= static_cast<int>(logits.size()); ++chosen) {
      for (const bool normalize : {false, true}) {
        const Choice choice = choose(logits, chosen, normalize);
        for (size_t i = 0; i < choice.ids.size(); ++i) {
          CHECK(choice.ids[i] >= 0);
          CHECK(choice.ids[i] < static_cast<int>(logits.size()));
          if (i > 0) CHECK(choice.ids[i] > choice.ids[i - 1]);
        }
        CHECK(std::any_of(choice.weights.begin(), choice.weights.end(), [](float w) { return std::isnan(w); }));
      }
    }
  }
}
