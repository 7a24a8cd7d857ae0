#include "engine/model/config_reader.h"

#include <cmath>

#include "base/format.h"
#include "base/text.h"

namespace cpuinfer::model {

const Json* ConfigReader::find_set(const char* key) const {
  const Json* value = object_.find(key);
  return value != nullptr && !value->is_null() ? value : nullptr;
}

std::unexpected<Error> ConfigReader::bad(const std::string& message) const {
  return fail(ErrorCode::kBadInput, format("{}: {}", where_, message));
}

std::unexpected<Error> ConfigReader::bad(const char* key, const std::string& expected, const Json* found) const {
  return bad(format("{}: expected {}, found {}", key, expected, shown(found)));
}

std::unexpected<Error> ConfigReader::unsupported(const std::string& message) const {
  return fail(ErrorCode::kUnsupported, format("{}: {}", where_, message));
}

Result<int64_t> ConfigReader::integer(const char* key, int64_t absent, int64_t low, int64_t high) const {
  const Json* value = find(key);
  if (value == nullptr) return absent;
  if (!value->is_int() || value->as_int() < low || value->as_int() > high)
    return bad(key, format("an integer from {} to {}", low, high), value);
  return value->as_int();
}

Result<double> ConfigReader::number(const char* key, double absent, double low, double high) const {
  const Json* value = find(key);
  if (value == nullptr) return absent;
  // The comparison is false for NaN too.
  if (!value->is_number() || !(value->as_double() >= low && value->as_double() <= high))
    return bad(key, format("a number from {} to {}", low, high), value);
  return value->as_double();
}

Result<bool> ConfigReader::boolean(const char* key, bool absent) const {
  const Json* value = find(key);
  if (value == nullptr) return absent;
  if (!value->is_bool()) return bad(key, "true or false", value);
  return value->as_bool();
}

Result<std::optional<int64_t>> ConfigReader::optional_integer(const char* key, int64_t low, int64_t high) const {
  if (find_set(key) == nullptr) return std::nullopt;
  TRY_ASSIGN(const int64_t value, integer(key, 0, low, high));
  return value;
}

Result<std::optional<double>> ConfigReader::optional_number(const char* key, double low, double high) const {
  if (find_set(key) == nullptr) return std::nullopt;
  TRY_ASSIGN(const double value, number(key, 0, low, high));
  return value;
}

Result<std::optional<bool>> ConfigReader::optional_boolean(const char* key) const {
  if (find_set(key) == nullptr) return std::nullopt;
  TRY_ASSIGN(const bool value, boolean(key, false));
  return value;
}

Result<std::optional<std::string>> ConfigReader::optional_string(const char* key) const {
  const Json* value = find_set(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) return bad(key, "a string", value);
  return value->as_string();
}

}  // namespace cpuinfer::model
