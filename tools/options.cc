// Which command it is; the tables of their options are in options_*.cc.
#include "tools/options.h"

#include "base/format.h"
#include "tools/option_groups.h"
#include "tools/option_values.h"

namespace cpuinfer::tools {
namespace {

struct CommandRow {
  const char* name;
  ParseCommand* parse;
};

constexpr CommandRow kCommands[] = {
    {"plan", parse_plan},   {"doctor", parse_doctor}, {"tokenize", parse_tokenize}, {"detokenize", parse_detokenize},
    {"score", parse_score}, {"synth", parse_synth},   {"pack", parse_pack},         {"bench", parse_bench},
    {"run", parse_run},
};

}  // namespace

Result<CommandLine> parse_command_line(const std::vector<std::string>& arguments, const Environment& environment) {
  if (arguments.empty() || arguments[0].starts_with('-')) return parse_run(arguments, environment);
  const std::string& name = arguments[0];
  const std::vector<std::string> rest(arguments.begin() + 1, arguments.end());
  if (name == "help") {
    std::vector<std::string> asked = rest;  // "bench host" too
    asked.push_back("--help");
    return parse_command_line(asked, environment);
  }
  if (name == "version") return ShowText{"cpuinfer " CPUINFER_VERSION "\n"};
  std::vector<std::string> names = {"help", "version"};
  for (const CommandRow& command : kCommands) {
    if (name == command.name) return command.parse(rest, environment);
    names.push_back(command.name);
  }
  const std::string near = nearest_name(name, names);
  return fail(ErrorCode::kUsage, format("unknown command '{}'{}; 'cpuinfer --help' lists the commands", name,
                                        near.empty() ? "" : format("; did you mean '{}'?", near)));
}

}  // namespace cpuinfer::tools
