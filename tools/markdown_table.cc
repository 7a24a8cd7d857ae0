#include "tools/markdown_table.h"

#include <algorithm>

namespace cpuinfer::tools {
namespace {

// Characters, not bytes: "±" is one.
size_t width_of(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

}  // namespace

std::string markdown_table(const std::vector<std::vector<std::string>>& rows, size_t left) {
  std::vector<size_t> widths(rows.empty() ? 0 : rows[0].size(), 3);  // "--:"
  for (const auto& row : rows)
    for (size_t column = 0; column < row.size(); ++column)
      widths[column] = std::max(widths[column], width_of(row[column]));
  std::string text;
  for (size_t i = 0; i < rows.size(); ++i) {
    for (size_t column = 0; column < widths.size(); ++column) {
      const std::string cell = column < rows[i].size() ? rows[i][column] : "";
      const std::string space(widths[column] - width_of(cell), ' ');
      text += "| " + (column < left ? cell + space : space + cell) + " ";
    }
    text += "|\n";
    if (i > 0) continue;
    for (size_t column = 0; column < widths.size(); ++column)
      text += "| " + std::string(widths[column] - 1, '-') + (column < left ? "- " : ": ");
    text += "|\n";
  }
  return text;
}

}  // namespace cpuinfer::tools
