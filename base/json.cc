#include "base/json.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/format.h"

namespace cpuinfer {
namespace {

using Library = nlohmann::ordered_json;

// Builds Json from the library's events, so that depth is bounded while reading and doubled names are seen.
class Builder : public nlohmann::json_sax<Library> {
 public:
  Builder(std::string_view where, JsonLimits limits) : where_(where), limits_(limits) {}

  bool null() override { return put(Json()); }
  bool boolean(bool value) override { return put(Json(value)); }
  bool number_integer(number_integer_t value) override { return put(Json(static_cast<int64_t>(value))); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value <= static_cast<uint64_t>(INT64_MAX)) return put(Json(static_cast<int64_t>(value)));
    return put(Json(static_cast<double>(value)));
  }
  bool number_float(number_float_t value, const string_t&) override { return put(Json(static_cast<double>(value))); }
  bool string(string_t& value) override { return put(Json(std::move(value))); }
  bool binary(binary_t&) override { return reject("binary values are not JSON"); }
  bool start_object(std::size_t) override { return open(Json(Json::Object{})); }
  bool start_array(std::size_t) override { return open(Json(Json::Array{})); }
  bool key(string_t& value) override {
    keys_.push_back(std::move(value));
    return true;
  }
  bool end_array() override { return close(); }
  bool end_object() override {
    std::vector<std::string_view> names;
    for (const auto& [name, unused] : stack_.back().as_object()) names.push_back(name);
    std::sort(names.begin(), names.end());
    const auto twin = std::adjacent_find(names.begin(), names.end());
    if (twin != names.end()) return reject(format("member \"{}\" appears twice in one object", *twin));
    return close();
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    // The library's sentence starts with its own "[json.exception...] " tag, which says nothing to a user.
    std::string_view text = error.what();
    if (const auto end = text.find("] "); end != text.npos) text.remove_prefix(end + 2);
    return reject(format("byte {}: {}", position, text));
  }

  Json root;
  std::string message;

 private:
  bool reject(std::string text) {
    message = format("{}: {}", where_, text);
    return false;
  }
  bool open(Json container) {
    if (static_cast<int>(stack_.size()) >= limits_.depth)
      return reject(format("nested deeper than {} levels", limits_.depth));
    stack_.push_back(std::move(container));
    return true;
  }
  bool close() {
    Json done = std::move(stack_.back());
    stack_.pop_back();
    return put(std::move(done));
  }
  bool put(Json value) {
    if (++values_ > limits_.values)
      return reject(format("has more than {} values, the most that are read from one text", limits_.values));
    if (stack_.empty()) {
      root = std::move(value);
    } else if (stack_.back().is_array()) {
      stack_.back().as_array().push_back(std::move(value));
    } else {
      stack_.back().as_object().emplace_back(std::move(keys_.back()), std::move(value));
      keys_.pop_back();
    }
    return true;
  }

  std::string_view where_;
  JsonLimits limits_;
  int64_t values_ = 0;
  std::vector<Json> stack_;
  std::vector<std::string> keys_;
};

Library to_library(const Json& value) {
  if (value.is_bool()) return value.as_bool();
  if (value.is_int()) return value.as_int();
  if (value.is_number()) return value.as_double();
  if (value.is_string()) return value.as_string();
  if (value.is_array()) {
    Library array = Library::array();
    for (const Json& item : value.as_array()) array.push_back(to_library(item));
    return array;
  }
  if (value.is_object()) {
    Library object = Library::object();
    for (const auto& [name, member] : value.as_object()) object[name] = to_library(member);
    return object;
  }
  return nullptr;
}

}  // namespace

const char* Json::kind_name() const {
  static constexpr const char* kNames[] = {"null", "boolean", "integer", "number", "string", "array", "object"};
  return kNames[value_.index()];
}

const Json* Json::find(std::string_view key) const {
  if (!is_object()) return nullptr;
  for (const auto& [name, member] : as_object())
    if (name == key) return &member;
  return nullptr;
}

void Json::set(std::string key, Json value) {
  if (is_null()) value_ = Object{};
  for (auto& [name, member] : as_object()) {
    if (name == key) {
      member = std::move(value);
      return;
    }
  }
  as_object().emplace_back(std::move(key), std::move(value));
}

void Json::push_back(Json value) {
  if (is_null()) value_ = Array{};
  as_array().push_back(std::move(value));
}

Result<Json> parse_json(std::string_view text, std::string_view where, JsonLimits limits) {
  Builder builder(where, limits);
  if (!Library::sax_parse(text.begin(), text.end(), &builder)) {
    if (builder.message.empty()) builder.message = format("{}: not valid JSON", where);
    return fail(ErrorCode::kBadInput, std::move(builder.message));
  }
  return std::move(builder.root);
}

std::string to_json_text(const Json& value, int indent) {
  return to_library(value).dump(indent, ' ', false, Library::error_handler_t::replace);
}

}  // namespace cpuinfer
