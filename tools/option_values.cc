#include "tools/option_values.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <vector>

#include "base/format.h"
#include "base/text.h"
#include "engine/model/config_rope.h"
#include "numa/cpu_list.h"

namespace cpuinfer::tools {
namespace {

std::unexpected<Error> bad(std::string_view name, std::string_view text, std::string_view expected) {
  return fail(ErrorCode::kUsage, format("{} is '{}'; it must be {}", name, text, expected));
}

// The number that all of `text` is.
template <typename T>
std::optional<T> whole(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// 1024^n for the n-th letter of "kmgt", case ignored; 0 for any other.
double scale_of(char letter) {
  constexpr std::string_view kLetters = "kmgt";
  const size_t at = kLetters.find(static_cast<char>(letter | 0x20));
  return at == std::string_view::npos ? 0 : std::ldexp(1.0, 10 * (static_cast<int>(at) + 1));
}

// A number with an optional letter, exact and not negative, below 2^62.
std::optional<int64_t> scaled(std::string_view text) {
  if (text.empty()) return std::nullopt;
  if (const auto plain = whole<int64_t>(text)) return plain;
  const double scale = scale_of(text.back());
  if (scale == 0) return std::nullopt;
  const auto number = whole<double>(text.substr(0, text.size() - 1));
  if (!number || !std::isfinite(*number)) return std::nullopt;
  const double value = *number * scale;
  if (std::fabs(value) >= 0x1p62 || value != std::floor(value)) return std::nullopt;
  return static_cast<int64_t>(value);
}

// A number of at least 0 before one of `units`, and what the unit is worth.
struct Unit {
  std::string_view name;
  double factor;
};
std::optional<double> with_unit(std::string_view text, std::span<const Unit> units) {
  for (const Unit& unit : units) {
    if (!text.ends_with(unit.name)) continue;
    std::string_view digits = text.substr(0, text.size() - unit.name.size());
    if (digits.ends_with(' ')) digits.remove_suffix(1);
    const auto number = whole<double>(digits);
    if (number && std::isfinite(*number * unit.factor) && *number >= 0) return *number * unit.factor;
  }
  return std::nullopt;
}

}  // namespace

Result<int64_t> parse_count(std::string_view name, std::string_view text, int64_t low, int64_t high) {
  const auto value = scaled(text);
  if (!value || *value < low || *value > high) {
    return high == INT64_MAX ? bad(name, text, format("a whole number, {} or more (k = 1024)", low))
                             : bad(name, text, format("a whole number between {} and {} (k = 1024)", low, high));
  }
  return *value;
}

Result<int64_t> parse_size(std::string_view name, std::string_view text) {
  std::string_view number = text;
  if (!number.empty() && (number.back() | 0x20) == 'b') {
    number.remove_suffix(1);
    if (!number.empty() && number.back() == 'i') number.remove_suffix(1);
  }
  const auto value = scaled(number);
  if (!value || *value < 1) return bad(name, text, "a size such as 512MiB, 64G or 1.5TiB (powers of 1024)");
  return *value;
}

Result<double> parse_rate(std::string_view name, std::string_view text) {
  constexpr Unit kUnits[] = {{"kB/s", 1e3},     {"MB/s", 1e6},     {"GB/s", 1e9},     {"TB/s", 1e12},
                             {"KiB/s", 0x1p10}, {"MiB/s", 0x1p20}, {"GiB/s", 0x1p30}, {"TiB/s", 0x1p40}};
  const auto value = with_unit(text, kUnits);
  if (!value || *value < 1) return bad(name, text, "a rate such as 250GB/s (powers of 1000) or 230GiB/s");
  return *value;
}

Result<double> parse_time(std::string_view name, std::string_view text) {
  constexpr Unit kUnits[] = {{"ns", 1e-9}, {"us", 1e-6}, {"ms", 1e-3}, {"s", 1}};
  const auto value = with_unit(text, kUnits);
  if (!value) return bad(name, text, "a time such as 1.5us or 800ns");
  return *value;
}

Result<std::vector<int64_t>> parse_sizes(std::string_view name, std::string_view text) {
  std::vector<int64_t> sizes;
  for (size_t start = 0; start <= text.size();) {
    const size_t comma = std::min(text.find(',', start), text.size());
    TRY_ASSIGN(const int64_t size, parse_size(name, text.substr(start, comma - start)));
    sizes.push_back(size);
    start = comma + 1;
  }
  return sizes;
}

Result<double> parse_number(std::string_view name, std::string_view text) {
  const auto value = whole<double>(text);
  if (!value || !std::isfinite(*value)) return bad(name, text, "a number");
  return *value;
}

Result<uint64_t> parse_seed(std::string_view name, std::string_view text) {
  const auto value = whole<uint64_t>(text);
  if (!value) return bad(name, text, "a whole number between 0 and 18446744073709551615");
  return *value;
}

Result<std::vector<int>> parse_numbers(std::string_view name, std::string_view text, std::string_view expected) {
  std::optional<std::vector<int>> numbers = numa::parse_list(text);
  if (!numbers || numbers->empty()) return bad(name, text, expected);
  return std::move(*numbers);
}

Result<bool> parse_switch(std::string_view name, std::string_view text) {
  for (const char* yes : {"1", "true", "yes", "on"})
    if (text == yes) return true;
  for (const char* no : {"0", "false", "no", "off"})
    if (text == no) return false;
  return bad(name, text, "1 (or true, yes, on) or 0 (or false, no, off)");
}

Result<model::RopeConfig> parse_rope_scaling(std::string_view name, std::string_view text) {
  constexpr std::string_view kForm =
      "auto, default, linear:FACTOR, dynamic:FACTOR or yarn:FACTOR[:ORIGINAL], such as yarn:4:32768";
  std::vector<std::string_view> parts;
  for (std::string_view rest = text;;) {
    const size_t colon = rest.find(':');
    parts.push_back(rest.substr(0, colon));
    if (colon == std::string_view::npos) break;
    rest.remove_prefix(colon + 1);
  }
  model::RopeConfig rope;
  if (parts[0] == "default") {
    if (parts.size() != 1) return bad(name, text, kForm);
    return rope;
  }
  if (parts[0] == "linear")
    rope.type = model::RopeType::kLinear;
  else if (parts[0] == "dynamic")
    rope.type = model::RopeType::kDynamic;
  else if (parts[0] == "yarn")
    rope.type = model::RopeType::kYarn;
  else
    return bad(name, text, kForm);
  if (parts.size() < 2 || parts.size() > (rope.type == model::RopeType::kYarn ? 3u : 2u)) return bad(name, text, kForm);

  const auto factor = whole<double>(parts[1]);
  if (!factor || !std::isfinite(*factor) || *factor < 1)
    return bad(name, text, "a type with a factor of 1 or more, such as yarn:4");
  rope.factor = *factor;
  if (parts.size() == 3) {
    TRY_ASSIGN(rope.original_max_positions,
               parse_count(format("the original length in {}", name), parts[2], 1, model::kMaxPositions));
  }
  return rope;
}

std::string nearest_name(std::string_view wrong, std::span<const std::string> names) {
  std::string best;
  size_t best_distance = std::max<size_t>(1, wrong.size() / 3) + 1;
  for (const std::string& name : names) {
    // The beginning of a name means that name, however long the rest: "--repetition", "qwen3-30b".
    const size_t distance = name.starts_with(wrong) && wrong.size() >= 3 ? 0 : edit_distance(wrong, name);
    if (distance < best_distance) {
      best = name;
      best_distance = distance;
    }
  }
  return best;
}

}  // namespace cpuinfer::tools
