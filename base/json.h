// JSON values. json.cc is the only file that includes the JSON library.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/result.h"

namespace cpuinfer {

/// An immutable-by-convention JSON value with ordered object members. Copying copies the tree.
/// Numbers keep their kind: integers that fit int64_t are integers, everything else is a double.
class Json {
 public:
  using Array = std::vector<Json>;
  using Member = std::pair<std::string, Json>;
  using Object = std::vector<Member>;

  Json() = default;  // null
  Json(std::nullptr_t) {}
  Json(bool value) : value_(value) {}
  Json(int value) : value_(static_cast<int64_t>(value)) {}
  Json(int64_t value) : value_(value) {}
  Json(double value) : value_(value) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  bool is_int() const { return std::holds_alternative<int64_t>(value_); }
  bool is_number() const { return is_int() || std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }
  /// "null", "boolean", "integer", "number", "string", "array", "object": for messages.
  const char* kind_name() const;

  // REQUIRES: the matching is_*().
  bool as_bool() const { return std::get<bool>(value_); }
  int64_t as_int() const { return std::get<int64_t>(value_); }
  double as_double() const { return is_int() ? static_cast<double>(as_int()) : std::get<double>(value_); }
  const std::string& as_string() const { return std::get<std::string>(value_); }
  const Array& as_array() const { return std::get<Array>(value_); }
  const Object& as_object() const { return std::get<Object>(value_); }
  Array& as_array() { return std::get<Array>(value_); }
  Object& as_object() { return std::get<Object>(value_); }

  /// The member, or nullptr if this is no object or has no such member. Linear in the member count.
  const Json* find(std::string_view key) const;
  /// Adds or replaces a member. A null value becomes an object first.
  void set(std::string key, Json value);
  /// Appends to an array. A null value becomes an array first.
  void push_back(Json value);

 private:
  std::variant<std::nullptr_t, bool, int64_t, double, std::string, Array, Object> value_ = nullptr;
};

/// What parse_json() accepts. A value needs as little as two bytes of text ("0,") but up to 100 bytes of memory
/// (2,000,000 members were measured to take 200 MB), so that a bound for the text's size alone is not enough. Qwen3's
/// tokenizer.json has 606,054 values, the header of a safetensors file about 10 for each tensor.
struct JsonLimits {
  int depth = 64;              ///< of nested arrays and objects
  int64_t values = 2'000'000;  ///< of any kind, arrays and objects included; member names do not count
};

/// Parses hostile text: what exceeds `limits`, doubled member names, invalid UTF-8 and trailing bytes are errors
/// (kBadInput) that say where. `where` names the source in messages.
Result<Json> parse_json(std::string_view text, std::string_view where, JsonLimits limits = {});

/// indent < 0: one line. Invalid UTF-8 is replaced by U+FFFD. NaN and infinities become null.
std::string to_json_text(const Json& value, int indent = -1);

}  // namespace cpuinfer
