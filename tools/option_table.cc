// The only file that includes the command-line library.
#include "tools/option_table.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>

namespace cpuinfer::tools {

struct OptionTable::Library {
  Library(const std::string& command, const std::string& description) : app(description, command) {}
  CLI::App app;
};

OptionTable::OptionTable(const std::string& command, const std::string& description)
    : command_(command), library_(std::make_unique<Library>(command, description)) {
  library_->app.allow_extras();
  library_->app.set_help_flag();  // comes back at the end of the list, in parse()
  library_->app.get_formatter()->column_width(34);
}

OptionTable::~OptionTable() = default;

void OptionTable::group(const char* name) { group_ = name; }

void OptionTable::value(const std::string& names, const char* kind, const std::string& help, Setter set,
                        Variable variable) {
  add_value(names, kind, help, std::move(set), variable, 1);
}

void OptionTable::optional_value(const std::string& names, const char* kind, const std::string& help, Setter set,
                                 Variable variable) {
  add_value(names, kind, help, std::move(set), variable, 0);
}

void OptionTable::add_value(const std::string& names, const char* kind, const std::string& help, Setter set,
                            Variable variable, int least_values) {
  Entry& entry = add(names, std::move(set), variable);
  CLI::callback_t store = [&entry](const CLI::results_t& results) {
    entry.given = results;
    if (results.empty()) entry.given = {""};
    return true;
  };
  CLI::Option* const option = library_->app.add_option(names, store, help)
                                  ->type_name(kind)
                                  ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
                                  ->group(group_);
  if (least_values == 0) option->expected(0, 1);
}

void OptionTable::flag(const std::string& names, const std::string& help, std::function<void()> set,
                       Variable variable) {
  Entry& entry = add(
      names,
      [set](std::string_view name, const std::string& text) -> Result<void> {
        TRY_ASSIGN(const bool on, parse_switch(name, text));
        if (on) set();
        return {};
      },
      variable);
  library_->app.add_flag_callback(names, [&entry] { entry.given = {"1"}; }, help)->group(group_);
}

void OptionTable::positional(const char* name, const char* help, std::string& target) {
  library_->app.add_option(name, target, help);
}

void OptionTable::footer(const std::string& text) { library_->app.footer(text); }

bool OptionTable::given(std::string_view name) const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [&](const std::unique_ptr<Entry>& entry) { return entry->name == name && !entry->given.empty(); });
}

Result<std::optional<std::string>> OptionTable::parse(const std::vector<std::string>& arguments,
                                                      const Environment& environment) {
  CLI::App& app = library_->app;
  app.set_help_flag("-h,--help", "Print this help")->group("General");
  try {
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::CallForHelp&) {
    return app.help();
  } catch (const CLI::ParseError& error) {
    return usage(error.what());
  }
  TRY(check_unknown());
  for (const std::unique_ptr<Entry>& entry : entries_) {
    if (!entry->given.empty()) {
      for (const std::string& text : entry->given) TRY(entry->set(entry->name, text));
    } else if (!entry->variable.empty()) {
      const std::optional<std::string> text = environment(entry->variable.c_str());
      if (text && !text->empty()) TRY(entry->set(entry->variable, *text));
    }
  }
  return std::nullopt;
}

std::unexpected<Error> OptionTable::usage(const std::string& message) const {
  return fail(ErrorCode::kUsage, format("{}; '{} --help' lists the options", message, command_));
}

OptionTable::Entry& OptionTable::add(const std::string& names, Setter set, Variable variable) {
  auto entry = std::make_unique<Entry>();
  for (size_t start = 0; start < names.size();) {
    const size_t comma = std::min(names.find(',', start), names.size());
    const std::string name = names.substr(start, comma - start);
    if (name.starts_with("--")) {
      long_names_.push_back(name);
      if (entry->name.empty()) entry->name = name;
    }
    start = comma + 1;
  }
  if (variable == Variable::kYes) {
    entry->variable = "CPUINFER_" + entry->name.substr(2);
    for (char& c : entry->variable) c = c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  entry->set = std::move(set);
  return *entries_.emplace_back(std::move(entry));
}

Result<void> OptionTable::check_unknown() const {
  const std::vector<std::string> unknown = library_->app.remaining();
  if (unknown.empty()) return {};
  // A value after an unknown option is no fault of its own.
  const auto option =
      std::find_if(unknown.begin(), unknown.end(), [](const std::string& s) { return s.starts_with('-'); });
  if (option == unknown.end())
    return usage(
        format("unexpected argument '{}': values come after their options, text after --prompt", unknown.front()));
  const std::string name = option->substr(0, option->find('='));
  const std::string near = nearest_name(name, long_names_);
  return usage(near.empty() ? format("unknown option '{}'", name)
                            : format("unknown option '{}'; did you mean '{}'?", name, near));
}

}  // namespace cpuinfer::tools
