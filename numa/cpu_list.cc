#include "numa/cpu_list.h"

#include <algorithm>
#include <charconv>

#include "base/format.h"

namespace cpuinfer::numa {
namespace {

constexpr int kMostNumber = 65535;

/// The number at the beginning of `text`, which it takes off.
std::optional<int> take_number(std::string_view& text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || value < 0 || value > kMostNumber) return std::nullopt;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return value;
}

bool take(std::string_view& text, char expected) {
  if (!text.starts_with(expected)) return false;
  text.remove_prefix(1);
  return true;
}

}  // namespace

std::optional<std::vector<int>> parse_list(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.remove_suffix(1);
  std::vector<int> numbers;
  if (text.empty()) return numbers;
  do {
    const std::optional<int> first = take_number(text);
    if (!first) return std::nullopt;
    std::optional<int> last = first;
    std::optional<int> stride = 1;
    if (take(text, '-')) {
      last = take_number(text);
      if (!last || *last < *first) return std::nullopt;
      if (take(text, ':')) stride = take_number(text);
      if (!stride || *stride < 1) return std::nullopt;
    }
    for (int number = *first; number <= *last; number += *stride) numbers.push_back(number);
  } while (take(text, ','));
  if (!text.empty()) return std::nullopt;
  std::ranges::sort(numbers);
  numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
  return numbers;
}

std::string list_text(std::span<const int> numbers) {
  std::string text;
  for (size_t i = 0; i < numbers.size();) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text += format("{}{}", text.empty() ? "" : ",", numbers[i]);
    if (last > i) text += format("-{}", numbers[last]);
    i = last + 1;
  }
  return text.empty() ? "none" : text;
}

}  // namespace cpuinfer::numa
