// The options of one command as a table: name, help, variable, and what takes the value. Hides the command-line
// library.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/format.h"
#include "base/result.h"
#include "tools/option_values.h"
#include "tools/options.h"

namespace cpuinfer::tools {

/// Takes the value of an option; `name` is what the user wrote: the option or its variable.
using Setter = std::function<Result<void>(std::string_view name, const std::string& value)>;

/// Whether an option has an environment variable: what belongs to one call only has none.
enum class Variable { kYes, kNo };

/// The options of one command. The library splits arguments and prints help; values are checked by the setters, so that
/// flags and environment variables get the same sentences. Setters run in parse(), in the order of the table.
class OptionTable {
 public:
  /// command: as users type it, "cpuinfer plan"; description: what it does, for its help.
  OptionTable(const std::string& command, const std::string& description);
  ~OptionTable();
  OptionTable(const OptionTable&) = delete;
  OptionTable& operator=(const OptionTable&) = delete;

  /// The heading of the options that follow.
  void group(const char* name);
  /// names: "-c,--ctx"; the first long name is the one in messages and of the variable. kind: "TOKENS".
  void value(const std::string& names, const char* kind, const std::string& help, Setter set,
             Variable variable = Variable::kYes);
  /// The same whose value may be left out: the setter then gets "".
  void optional_value(const std::string& names, const char* kind, const std::string& help, Setter set,
                      Variable variable = Variable::kYes);
  void flag(const std::string& names, const std::string& help, std::function<void()> set,
            Variable variable = Variable::kYes);
  void positional(const char* name, const char* help, std::string& target);
  /// Text after the list.
  void footer(const std::string& text);

  /// Calls the setters; returns help instead if that was asked for. Errors: kUsage.
  Result<std::optional<std::string>> parse(const std::vector<std::string>& arguments, const Environment& environment);

  /// Whether the last parse() found an option, by its first long name, among the arguments: not its variable.
  bool given(std::string_view name) const;

  /// kUsage with `message` and where the options are listed.
  std::unexpected<Error> usage(const std::string& message) const;

 private:
  struct Library;
  struct Entry {
    std::string name;      // "--ctx"
    std::string variable;  // "CPUINFER_CTX", or empty
    Setter set;
    std::vector<std::string> given;
  };

  void add_value(const std::string& names, const char* kind, const std::string& help, Setter set, Variable variable,
                 int least_values);
  Entry& add(const std::string& names, Setter set, Variable variable);
  Result<void> check_unknown() const;

  std::string command_;
  std::unique_ptr<Library> library_;
  std::string group_ = "Options";
  std::vector<std::unique_ptr<Entry>> entries_;
  std::vector<std::string> long_names_ = {"--help"};
};

// Setters. `target` must outlive parse(). ---------------------------------------------------------------------------

/// Any text.
template <typename T>
Setter text_into(T& target) {
  return [&target](std::string_view, const std::string& value) -> Result<void> {
    target = value;
    return {};
  };
}

/// parse_count().
template <typename T>
Setter count_into(T& target, int64_t low, int64_t high) {
  return [&target, low, high](std::string_view name, const std::string& value) -> Result<void> {
    TRY_ASSIGN(const int64_t number, parse_count(name, value, low, high));
    if constexpr (std::is_same_v<T, std::optional<int>> || std::is_same_v<T, int>)
      target = static_cast<int>(number);
    else
      target = number;
    return {};
  };
}

/// Counts separated by commas: "1,8,32", each by parse_count(). The last list given counts.
template <typename T>
Setter counts_into(std::vector<T>& target, int64_t low, int64_t high) {
  return [&target, low, high](std::string_view name, const std::string& value) -> Result<void> {
    target.clear();
    for (size_t start = 0; start <= value.size();) {
      const size_t comma = std::min(value.find(',', start), value.size());
      TRY_ASSIGN(const int64_t number, parse_count(name, value.substr(start, comma - start), low, high));
      target.push_back(static_cast<T>(number));
      start = comma + 1;
    }
    return {};
  };
}

/// parse_size().
template <typename T>
Setter size_into(T& target) {
  return [&target](std::string_view name, const std::string& value) -> Result<void> {
    TRY_ASSIGN(target, parse_size(name, value));
    return {};
  };
}

/// parse_rate() and parse_time().
template <typename T>
Setter rate_into(T& target) {
  return [&target](std::string_view name, const std::string& value) -> Result<void> {
    TRY_ASSIGN(target, parse_rate(name, value));
    return {};
  };
}
template <typename T>
Setter time_into(T& target) {
  return [&target](std::string_view name, const std::string& value) -> Result<void> {
    TRY_ASSIGN(target, parse_time(name, value));
    return {};
  };
}

/// parse_number().
inline Setter number_into(std::optional<float>& target) {
  return [&target](std::string_view name, const std::string& value) -> Result<void> {
    TRY_ASSIGN(const double number, parse_number(name, value));
    target = static_cast<float>(number);
    return {};
  };
}

/// parse_seed().
template <typename T>
Setter seed_into(T& target) {
  return [&target](std::string_view name, const std::string& value) -> Result<void> {
    TRY_ASSIGN(target, parse_seed(name, value));
    return {};
  };
}

/// One of the names.
template <typename T>
Setter choice_into(T& target, std::vector<std::pair<const char*, T>> choices) {
  return [&target, choices](std::string_view name, const std::string& value) -> Result<void> {
    std::string names;
    for (const auto& [text, choice] : choices) {
      if (value == text) {
        target = choice;
        return {};
      }
      names += (names.empty() ? "" : ", ") + std::string(text);
    }
    return fail(ErrorCode::kUsage, format("{} is '{}'; it must be one of {}", name, value, names));
  };
}

}  // namespace cpuinfer::tools
