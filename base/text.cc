#include "base/text.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "base/format.h"

namespace cpuinfer {

std::string in_quotes(std::string_view text, size_t longest) {
  return to_json_text(Json(std::string(text.substr(0, longest)) + (text.size() > longest ? "..." : "")));
}

std::string shown(const Json* value) {
  if (value == nullptr) return "nothing";
  if (value->is_array() || value->is_object()) return format("an {}", value->kind_name());
  return value->is_string() ? in_quotes(value->as_string()) : to_json_text(*value);
}

size_t edit_distance(std::string_view a, std::string_view b) {
  // Rows of the table [a.size() + 1][b.size() + 1] for i - 2, i - 1 and i bytes of a.
  std::vector<size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    std::swap(before, last);
    std::swap(last, row);
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row[b.size()];
}

}  // namespace cpuinfer
