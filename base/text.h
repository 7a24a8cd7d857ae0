// Text for messages: foreign text made safe to show, and how alike two names are.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "base/json.h"

namespace cpuinfer {

/// As a JSON string: control characters escaped, ill-formed UTF-8 as U+FFFD, and cut to `longest` bytes with "..." so
/// that a hostile file cannot make a message of megabytes. (Argument lookup would mix "quoted" up with std::quoted.)
std::string in_quotes(std::string_view text, size_t longest = 100);

/// A value of a JSON file: scalars as they stand, strings in_quotes(), else "an array", "an object"; "nothing" for
/// nullptr.
std::string shown(const Json* value);

/// The fewest insertions, deletions, replacements and swaps of neighbouring bytes that make `b` of `a`, no part edited
/// twice (optimal string alignment). Takes time a.size() * b.size().
size_t edit_distance(std::string_view a, std::string_view b);

}  // namespace cpuinfer
