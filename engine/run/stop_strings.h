// Finds stop strings in text that arrives in pieces.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cpuinfer::run {

/// Lets text through that cannot be part of a stop string; holds back a tail that still may become one.
class StopStrings {
 public:
  /// Empty strings are ignored.
  explicit StopStrings(std::vector<std::string> strings);

  /// Text that may be shown now. After found() it is always empty.
  std::string push(std::string_view text);
  /// True once a stop string was complete; it and what follows it are never shown.
  bool found() const { return found_; }
  /// The end of the text: what was held back.
  std::string finish();

 private:
  std::vector<std::string> strings_;
  std::string held_;
  bool found_ = false;
};

}  // namespace cpuinfer::run
