// Lists of CPUs and nodes as Linux writes them: "0-3,8".
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace cpuinfer::numa {

/// The numbers of "0-3,8" or "0-10:2" (every second), as files below /sys and taskset have them: ascending, each once.
/// "" is an empty list; trailing white space is ignored. Nothing if the text is malformed or a number is over 65535.
std::optional<std::vector<int>> parse_list(std::string_view text);

/// "0-3,8" for ascending numbers; "none" if there are none.
std::string list_text(std::span<const int> numbers);

}  // namespace cpuinfer::numa
