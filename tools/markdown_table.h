// Tables that people and Markdown read alike.
#pragma once

#include <string>
#include <vector>

namespace cpuinfer::tools {

/// A Markdown table with columns of even width, a newline after each row. The first row is the heading. Columns are
/// aligned to the right, the first `left` of them to the left. Rows may be shorter than the heading.
std::string markdown_table(const std::vector<std::vector<std::string>>& rows, size_t left = 1);

}  // namespace cpuinfer::tools
