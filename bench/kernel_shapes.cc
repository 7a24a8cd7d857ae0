#include "bench/kernel_shapes.h"

#include <algorithm>

#include "base/format.h"
#include "kernels/kernels.h"

namespace cpuinfer::bench {
namespace {

struct Sizes {
  const char* name;
  int hidden, heads, kv_heads, head_dim, experts, intermediate;
};
constexpr Sizes kModels[] = {
    {"30b", 2048, 32, 4, 128, 128, 768},
    {"235b", 4096, 64, 4, 128, 128, 1536},
};
constexpr int kRouterSegment = 256;    // terms of one segment of the router's product (docs/numerics.md)
constexpr int kVocabularyPart = 8192;  // outputs of lm_head: enough for its speed

// One segment of the router and the values of one leaf make products of the same size.
static_assert(kRouterSegment == kernels::kLeafTokens);
static_assert(std::all_of(std::begin(kModels), std::end(kModels),
                          [](const Sizes& s) { return s.experts == s.head_dim; }));

std::vector<KernelShape> shapes_of(const Sizes& s) {
  const std::string name = s.name;
  const int group = s.heads / s.kv_heads;
  return {
      {name + " qkv", (s.heads + 2 * s.kv_heads) * s.head_dim, s.hidden},
      {name + " o segment", s.hidden, group * s.head_dim},
      {name + " router segment, attention PV", s.experts, kRouterSegment},
      {name + " gate_up", 2 * s.intermediate, s.hidden},
      {name + " down", s.hidden, s.intermediate},
      {name + " lm_head part", kVocabularyPart, s.hidden},
      {name + " attention QK", kernels::kLeafTokens, s.head_dim},
  };
}

}  // namespace

Result<std::vector<KernelShape>> kernel_shapes(std::string_view models) {
  std::vector<KernelShape> shapes;
  for (const Sizes& sizes : kModels) {
    if (models != "all" && models != sizes.name) continue;
    for (KernelShape& shape : shapes_of(sizes)) {
      const auto same = [&](const KernelShape& other) { return other.n == shape.n && other.k == shape.k; };
      if (std::none_of(shapes.begin(), shapes.end(), same)) shapes.push_back(std::move(shape));
    }
  }
  if (shapes.empty())
    return fail(ErrorCode::kUsage, format("unknown shapes '{}': expected one of 30b, 235b, all", models));
  return shapes;
}

}  // namespace cpuinfer::bench
