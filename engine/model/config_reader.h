// Typed, range-checked members of a config file's JSON object.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/json.h"
#include "base/result.h"

namespace cpuinfer::model {

/// Every error is kBadInput: "WHERE: KEY: expected ..., found ...". Views the object.
/// Bounds are inclusive. `null` counts as absent only in the optional_* functions.
class ConfigReader {
 public:
  ConfigReader(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

  const Json* find(const char* key) const { return object_.find(key); }
  /// As find, but nullptr for a null.
  const Json* find_set(const char* key) const;

  Result<int64_t> integer(const char* key, int64_t absent, int64_t low, int64_t high) const;
  Result<double> number(const char* key, double absent, double low, double high) const;
  Result<bool> boolean(const char* key, bool absent) const;
  Result<std::optional<int64_t>> optional_integer(const char* key, int64_t low, int64_t high) const;
  Result<std::optional<double>> optional_number(const char* key, double low, double high) const;
  Result<std::optional<bool>> optional_boolean(const char* key) const;
  Result<std::optional<std::string>> optional_string(const char* key) const;

  std::unexpected<Error> bad(const char* key, const std::string& expected, const Json* found) const;
  std::unexpected<Error> bad(const std::string& message) const;
  std::unexpected<Error> unsupported(const std::string& message) const;

 private:
  const Json& object_;
  std::string where_;
};

}  // namespace cpuinfer::model
