#include "tools/plan_svg.h"

#include <algorithm>
#include <cstdint>

#include "base/format.h"
#include "base/types.h"

namespace cpuinfer::tools {
namespace {

constexpr int kWidth = 960;
constexpr int kLeft = 90, kRight = 690;  // of the bars
constexpr int kTop = 64, kBar = 30, kGap = 16;
constexpr const char* kRed = "#c01c28";

struct Colour {
  std::string_view purpose, fill;
};

// Distinct in hue and in lightness; large purposes have the calmer ones.
constexpr Colour kColours[] = {
    {"experts", "#4e79a7"},   {"mlp", "#4e79a7"},       {"attention", "#f28e2b"},
    {"KV cache", "#76b7b2"},  {"embedding", "#59a14f"}, {"embedding and lm_head", "#59a14f"},
    {"lm_head", "#edc948"},   {"router", "#b07aa1"},    {"norms and biases", "#ff9da7"},
    {"workspace", "#9c755f"}, {"requests", "#d37295"},  {"page tables", "#79706e"},
    {"loading", "#a0cbe8"},   {"reserve", "#bab0ac"},
};

std::string_view colour_of(std::string_view purpose) {
  const auto* const found = std::ranges::find(kColours, purpose, &Colour::purpose);
  return found == std::end(kColours) ? "#5f5f5f" : found->fill;
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;  // XML has no other control characters
    }
  }
  return out;
}

std::string text_at(double x, double y, std::string_view attributes, std::string_view text) {
  return format("<text x=\"{:.1f}\" y=\"{:.1f}\"{}{}>{}</text>\n", x, y, attributes.empty() ? "" : " ", attributes,
                escaped(text));
}

// Bytes of a bar as a length.
class Scale {
 public:
  explicit Scale(const load::MemoryPlan& plan) {
    int64_t most = 1, largest = 0;
    for (int node = 0; node < static_cast<int>(plan.node_capacity.size()); ++node) {
      most = std::max(most, plan.node_total(node));
      largest = std::max(largest, plan.node_capacity[node]);
    }
    // Much more free memory than is needed would leave nothing to see: then outlines stay open to the right.
    bytes_ = std::max(most, std::min(largest, 4 * most));
  }
  double length(int64_t bytes) const {
    return static_cast<double>(bytes) / static_cast<double>(bytes_) * (kRight - kLeft);
  }
  bool shows(int64_t bytes) const { return bytes <= bytes_; }

 private:
  int64_t bytes_ = 0;
};

std::string node_bar(const load::MemoryPlan& plan, int node, const Scale& scale, double y) {
  const int64_t total = plan.node_total(node), capacity = plan.node_capacity[node];
  const int id = plan.node_ids[node];
  std::string out = text_at(kLeft - 10, y + 20, "text-anchor=\"end\"", format("node {}", id));
  int64_t before = 0;
  for (const load::PlanLine& line : plan.lines) {
    const int64_t bytes = line.node_bytes[node];
    if (bytes == 0) continue;
    out += format(
        "<rect class=\"segment\" x=\"{:.2f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{}\" fill=\"{}\">"
        "<title>node {}: {} {}</title></rect>\n",
        kLeft + scale.length(before), y, scale.length(bytes), kBar, colour_of(line.purpose), id, escaped(line.purpose),
        format_bytes(bytes));
    before += bytes;
  }
  const double limit = kLeft + scale.length(capacity);
  if (total > capacity) {
    const double end = kLeft + scale.length(total);
    out += format(
        "<rect x=\"{0:.2f}\" y=\"{1:.1f}\" width=\"{2:.2f}\" height=\"{3}\" fill=\"url(#over)\" stroke=\"{4}\">"
        "<title>node {5}: {6} more than is free</title></rect>\n"
        "<path d=\"M{0:.2f} {7:.1f}v{8}\" stroke=\"{4}\" stroke-width=\"3\"/>\n",
        limit, y, end - limit, kBar, kRed, id, format_bytes(total - capacity), y - 5, kBar + 10);
  } else if (scale.shows(capacity)) {
    out += format(
        "<rect x=\"{}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{}\" fill=\"none\" stroke=\"#333333\" "
        "stroke-dasharray=\"4 3\"><title>node {}: {} free</title></rect>\n",
        kLeft, y, limit - kLeft, kBar, id, format_bytes(capacity));
  } else {
    out += format(
        "<path d=\"M{0} {1:.1f}H{2}v{3}H{0}\" fill=\"none\" stroke=\"#333333\" stroke-dasharray=\"4 3\">"
        "<title>node {4}: {5} free</title></path>\n",
        kRight, y, kLeft, kBar, id, format_bytes(capacity));
  }
  const std::string sum = format("{} of {}", format_bytes(total), format_bytes(capacity));
  return out + (total > capacity ? text_at(kRight + 14, y + 20, format("fill=\"{}\" font-weight=\"bold\"", kRed), sum)
                                 : text_at(kRight + 14, y + 20, "", sum));
}

// Two columns of swatches with bytes, then the marks.
std::string legend(const load::MemoryPlan& plan, double top) {
  std::string out;
  int place = 0;
  for (const load::PlanLine& line : plan.lines) {
    const double x = kLeft + (place % 2) * 330, y = top + (place / 2) * 22;
    ++place;
    const double percent =
        100.0 * static_cast<double>(line.total()) / static_cast<double>(std::max<int64_t>(1, plan.total()));
    out += format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"14\" height=\"14\" fill=\"{}\"/>\n", x, y - 12,
                  colour_of(line.purpose));
    out += text_at(x + 22, y, "", line.purpose);
    out += text_at(x + 280, y, "text-anchor=\"end\"", format("{}, {:.1f} %", format_bytes(line.total()), percent));
  }
  const double y = top + (place + 1) / 2 * 22;
  out += format(
      "<rect x=\"{}\" y=\"{:.1f}\" width=\"14\" height=\"14\" fill=\"none\" stroke=\"#333333\" "
      "stroke-dasharray=\"4 3\"/>\n",
      kLeft, y - 12);
  out += text_at(kLeft + 22, y, "", "free on the node");
  out += format("<rect x=\"{}\" y=\"{:.1f}\" width=\"14\" height=\"14\" fill=\"url(#over)\" stroke=\"{}\"/>\n",
                kLeft + 330, y - 12, kRed);
  return out + text_at(kLeft + 352, y, "", "more than is free");
}

}  // namespace

std::string plan_svg(const load::MemoryPlan& plan, std::string_view title) {
  const int nodes = static_cast<int>(plan.node_capacity.size());
  const Scale scale(plan);
  const int legend_top = kTop + nodes * (kBar + kGap) + 46;
  const int rows = (static_cast<int>(plan.lines.size()) + 1) / 2 + 1;
  const int height = legend_top + rows * 22 + 10;
  std::string out = format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" "
      "font-family=\"DejaVu Sans, Arial, sans-serif\" font-size=\"13\" fill=\"#1a1a1a\">\n"
      "<title>{2}</title>\n"
      "<defs><pattern id=\"over\" width=\"7\" height=\"7\" patternUnits=\"userSpaceOnUse\" "
      "patternTransform=\"rotate(45)\"><path d=\"M0 0v7\" stroke=\"{3}\" stroke-width=\"6\"/></pattern></defs>\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n",
      kWidth, height, escaped(title), kRed);
  out += text_at(kLeft, 34, "font-size=\"16\" font-weight=\"bold\"", title);
  for (int node = 0; node < nodes; ++node) out += node_bar(plan, node, scale, kTop + node * (kBar + kGap));
  const std::string sum = format("all nodes: {} of {}; {}", format_bytes(plan.total()),
                                 format_bytes(plan.available.bytes), plan.available.reason);
  const double below = kTop + nodes * (kBar + kGap) + 12;
  out += plan.fits() ? text_at(kLeft, below, "", sum)
                     : text_at(kLeft, below, format("fill=\"{}\" font-weight=\"bold\"", kRed), "does not fit: " + sum);
  return out + legend(plan, legend_top) + "</svg>\n";
}

}  // namespace cpuinfer::tools
