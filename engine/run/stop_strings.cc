#include "engine/run/stop_strings.h"

#include <algorithm>
#include <utility>

namespace cpuinfer::run {

StopStrings::StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
  std::erase_if(strings_, [](const std::string& string) { return string.empty(); });
}

std::string StopStrings::push(std::string_view text) {
  if (found_) return {};
  held_ += text;
  size_t first = held_.npos;
  for (const std::string& string : strings_) first = std::min(first, held_.find(string));
  if (first != held_.npos) {
    found_ = true;
    std::string shown = held_.substr(0, first);
    held_.clear();
    return shown;
  }
  // The longest tail that begins a stop string.
  size_t tail = 0;
  for (const std::string& string : strings_) {
    for (size_t length = std::min(string.size() - 1, held_.size()); length > tail; --length) {
      if (held_.ends_with(std::string_view(string).substr(0, length))) {
        tail = length;
        break;
      }
    }
  }
  std::string shown = held_.substr(0, held_.size() - tail);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopStrings::finish() { return std::exchange(held_, {}); }

}  // namespace cpuinfer::run
