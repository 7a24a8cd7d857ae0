#include "tools/plan_svg.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "base/format.h"
#include "base/types.h"

using namespace cpuinfer;
using namespace cpuinfer::tools;

namespace {

load::MemoryPlan plan_of(int nodes, int64_t expert_bytes, int64_t capacity) {
  load::MemoryPlan plan;
  plan.lines = {{"experts", std::vector<int64_t>(nodes, expert_bytes)},
                {"KV cache", std::vector<int64_t>(nodes, 2_GiB)},
                {"of <nobody> & \"all\"", std::vector<int64_t>(nodes, 1_GiB)},
                {"reserve", std::vector<int64_t>(nodes, 0)}};
  plan.lines.back().node_bytes[0] = 256_MiB;
  for (int node = 0; node < nodes; ++node) plan.node_ids.push_back(2 * node);
  plan.node_capacity.assign(nodes, capacity);
  plan.available = {nodes * capacity, "a <test>"};
  for (int node = 0; node < nodes; ++node)
    if (plan.node_total(node) > capacity) plan.shortages.push_back("short");
  return plan;
}

// Tags are closed in order, attributes are quoted, and text has no bare characters of markup.
void check_well_formed(const std::string& svg) {
  std::vector<std::string> open;
  size_t at = 0;
  while (at < svg.size()) {
    if (svg[at] == '&') {
      const std::string_view rest = std::string_view(svg).substr(at);
      CHECK((rest.starts_with("&amp;") || rest.starts_with("&lt;") || rest.starts_with("&gt;") ||
             rest.starts_with("&quot;")));
    }
    CHECK(svg[at] != '>');
    if (svg[at] != '<') {
      ++at;
      continue;
    }
    const size_t end = svg.find('>', at);
    REQUIRE(end != std::string::npos);
    const std::string tag = svg.substr(at + 1, end - at - 1);
    CHECK(tag.find('<') == std::string::npos);
    int quotes = 0;
    for (const char c : tag) quotes += c == '"';
    CHECK(quotes % 2 == 0);
    const std::string name = tag.substr(0, tag.find_first_of(" /", 1));
    if (tag.starts_with('/')) {
      REQUIRE_FALSE(open.empty());
      CHECK(tag.substr(1) == open.back());
      open.pop_back();
    } else if (!tag.ends_with('/')) {
      open.push_back(name);
    }
    at = end + 1;
  }
  CHECK(open.empty());
}

double attribute(std::string_view tag, std::string_view name) {
  const size_t at = tag.find(format(" {}=\"", name));
  REQUIRE(at != std::string_view::npos);
  return std::strtod(std::string(tag.substr(at + name.size() + 3)).c_str(), nullptr);
}

std::vector<std::string> segments(const std::string& svg) {
  std::vector<std::string> found;
  for (size_t at = 0; (at = svg.find("<rect class=\"segment\"", at)) != std::string::npos; ++at)
    found.push_back(svg.substr(at, svg.find("</rect>", at) - at));
  return found;
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("a picture is well-formed, whatever the names and however many nodes") {
  for (const int nodes : {1, 2, 3, 8, 64}) {
    const std::string svg = plan_svg(plan_of(nodes, 5_GiB, 12_GiB), "a & b < \"c\" > d\n");
    check_well_formed(svg);
    CHECK(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
    CHECK(contains(svg, "<title>a &amp; b &lt; &quot;c&quot; &gt; d </title>"));
    CHECK(contains(svg, "of &lt;nobody&gt; &amp; &quot;all&quot;"));
    CHECK(contains(svg, "a &lt;test&gt;"));
    CHECK(contains(svg, format(">node {}</text>", 2 * (nodes - 1))));
  }
}

TEST_CASE("segments follow each other and are as long as their bytes") {
  const load::MemoryPlan plan = plan_of(2, 5_GiB, 12_GiB);
  const std::vector<std::string> bars = segments(plan_svg(plan, "t"));
  REQUIRE(bars.size() == 7);  // nothing has no segment
  const double per_gib = attribute(bars[0], "width") / 5;
  CHECK(attribute(bars[1], "width") == doctest::Approx(2 * per_gib).epsilon(0.001));
  CHECK(attribute(bars[2], "width") == doctest::Approx(per_gib).epsilon(0.001));
  CHECK(attribute(bars[3], "width") == doctest::Approx(per_gib / 4).epsilon(0.001));
  for (const size_t i : {1, 2, 3, 5, 6})
    CHECK(attribute(bars[i], "x") ==
          doctest::Approx(attribute(bars[i - 1], "x") + attribute(bars[i - 1], "width")).epsilon(0.001));
  CHECK(attribute(bars[4], "x") == attribute(bars[0], "x"));
  CHECK(attribute(bars[4], "y") > attribute(bars[0], "y") + attribute(bars[0], "height"));
  CHECK(contains(bars[1], "<title>node 0: KV cache 2.0 GiB</title>"));
  // The outline of what is free.
  CHECK(contains(plan_svg(plan, "t"), format("width=\"{:.2f}\"", 12 * per_gib)));
}

TEST_CASE("what is too much is marked") {
  const std::string fits = plan_svg(plan_of(2, 5_GiB, 12_GiB), "t");
  CHECK_FALSE(contains(fits, "does not fit"));
  CHECK_FALSE(contains(fits, "more than is free</title>"));
  const std::string over = plan_svg(plan_of(2, 10_GiB, 12_GiB), "t");
  check_well_formed(over);
  CHECK(contains(over, "does not fit: all nodes: 26.2 GiB of 24.0 GiB"));
  CHECK(contains(over, "<title>node 2: 1.0 GiB more than is free</title>"));
  // Far more free than needed: the bars stay visible.
  const std::string roomy = plan_svg(plan_of(2, 5_GiB, 4096_GiB), "t");
  check_well_formed(roomy);
  CHECK(attribute(segments(roomy)[0], "width") > 50);
  CHECK(contains(roomy, "<title>node 0: 4.0 TiB free</title>"));
}
