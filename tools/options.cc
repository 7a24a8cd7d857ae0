// The only file that includes the command-line library. The library splits arguments and prints help; values are
// checked here, so that flags and environment variables get the same sentences.
#include "tools/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <memory>
#include <string_view>
#include <utility>

#include "base/format.h"
#include "tools/option_values.h"

namespace cpuinfer::tools {
namespace {

/// Takes the value of an option; `name` is what the user wrote: the option or its variable.
using Setter = std::function<Result<void>(std::string_view name, const std::string& value)>;

/// Whether an option has an environment variable: what belongs to one call only has none.
enum class Variable { kYes, kNo };

/// The options of one command.
class OptionTable {
 public:
  OptionTable(const std::string& command, const std::string& description) : app_(description, command) {
    app_.allow_extras();
    app_.set_help_flag();  // comes back at the end of the list, in parse()
    app_.get_formatter()->column_width(34);
  }

  void group(const char* name) { group_ = name; }

  /// names: "-c,--ctx"; the first long name is the one in messages and of the variable.
  void value(const std::string& names, const char* kind, const std::string& help, Setter set,
             Variable variable = Variable::kYes) {
    Entry& entry = add(names, std::move(set), variable);
    CLI::callback_t store = [&entry](const CLI::results_t& results) {
      entry.given = results;
      return true;
    };
    app_.add_option(names, store, help)
        ->type_name(kind)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->group(group_);
  }

  void flag(const std::string& names, const std::string& help, std::function<void()> set,
            Variable variable = Variable::kYes) {
    Entry& entry = add(
        names,
        [set](std::string_view name, const std::string& text) -> Result<void> {
          TRY_ASSIGN(const bool on, parse_switch(name, text));
          if (on) set();
          return {};
        },
        variable);
    app_.add_flag_callback(names, [&entry] { entry.given = {"1"}; }, help)->group(group_);
  }

  void positional(const char* name, const char* help, std::string& target) { app_.add_option(name, target, help); }

  void footer(const std::string& text) { app_.footer(text); }

  /// Returns help if that was asked for.
  Result<std::optional<std::string>> parse(const std::vector<std::string>& arguments, const Environment& environment) {
    app_.set_help_flag("-h,--help", "Print this help")->group("General");
    try {
      app_.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
    } catch (const CLI::CallForHelp&) {
      return app_.help();
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

  std::unexpected<Error> usage(const std::string& message) const {
    return fail(ErrorCode::kUsage, format("{}; '{} --help' lists the options", message, app_.get_name()));
  }

 private:
  struct Entry {
    std::string name;      // "--ctx"
    std::string variable;  // "CPUINFER_CTX", or empty
    Setter set;
    std::vector<std::string> given;
  };

  Entry& add(const std::string& names, Setter set, Variable variable) {
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
      for (char& c : entry->variable)
        c = c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    }
    entry->set = std::move(set);
    return *entries_.emplace_back(std::move(entry));
  }

  Result<void> check_unknown() const {
    const std::vector<std::string> unknown = app_.remaining();
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

  CLI::App app_;
  std::string group_ = "Options";
  std::vector<std::unique_ptr<Entry>> entries_;
  std::vector<std::string> long_names_ = {"--help"};
};

// Setters -------------------------------------------------------------------------------------------------------------

template <typename T>
Setter text_into(T& target) {
  return [&target](std::string_view, const std::string& value) -> Result<void> {
    target = value;
    return {};
  };
}

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

Setter number_into(std::optional<float>& target) {
  return [&target](std::string_view name, const std::string& value) -> Result<void> {
    TRY_ASSIGN(const double number, parse_number(name, value));
    target = static_cast<float>(number);
    return {};
  };
}

template <typename T>
Setter seed_into(T& target) {
  return [&target](std::string_view name, const std::string& value) -> Result<void> {
    TRY_ASSIGN(target, parse_seed(name, value));
    return {};
  };
}

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

// Groups of options that commands share -----------------------------------------------------------------------------

void add_console(OptionTable& table, ConsoleOptions& options, const Environment& environment) {
  options.color = !environment("NO_COLOR").has_value();
  table.group("General");
  table.value("--progress", "HOW", "auto, bar, plain (a line now and then) or none",
              choice_into(options.progress, {{"auto", ProgressMode::kAuto},
                                             {"bar", ProgressMode::kBar},
                                             {"plain", ProgressMode::kPlain},
                                             {"none", ProgressMode::kNone}}));
  table.flag("-q,--quiet", "Only warnings and errors on stderr", [&options] { options.quiet = true; });
  table.flag("-v,--verbose", "Say more on stderr", [&options] { options.verbose = true; });
}

void add_json(OptionTable& table, bool& json, const char* help) {
  table.flag("--json", help, [&json] { json = true; }, Variable::kNo);
}

void add_model_name(OptionTable& table, std::string& model) {
  table.value("-m,--model", "NAME|DIR", "Model: a directory, or a name (see 'Models' in cpuinfer(1))",
              text_into(model));
}

void add_isa(OptionTable& table, std::string& isa) {
  table.value("--isa", "LEVEL",
              "Use no instructions beyond this level: reference,\navx2, avx512, avx512_bf16, amx [all the CPU has]",
              text_into(isa));
}

constexpr int kMaxThreads = 8192;

void add_model(OptionTable& table, ModelOptions& options) {
  run::EngineOptions& engine = options.engine;
  table.group("Model");
  add_model_name(table, options.model);
  table.value("-c,--ctx", "TOKENS",
              "Context: prompt and answer together; 256k = 262144\n[the model's limit, at most 32k]",
              count_into(engine.context_tokens, 1, INT64_MAX));
  table.value("--experts", "K", "Experts per token, instead of config.json's number",
              count_into(engine.experts, 1, INT32_MAX));
  table.value("--rope-scaling", "TYPE:FACTOR",
              "default, linear:F, dynamic:F or yarn:F[:ORIGINAL],\ninstead of config.json's",
              [&engine](std::string_view name, const std::string& value) -> Result<void> {
                TRY_ASSIGN(engine.rope, parse_rope_scaling(name, value));
                return {};
              });
  table.value("--memory-limit", "SIZE", "Use at most this much memory: 512MiB, 1.5TiB",
              [&engine](std::string_view name, const std::string& value) -> Result<void> {
                TRY_ASSIGN(engine.memory_limit_bytes, parse_size(name, value));
                return {};
              });
  table.group("Machine");
  table.value("-t,--threads", "N", "Worker threads [one per physical core]",
              count_into(engine.threads, 1, kMaxThreads));
  table.value("--nodes", "N", "Memory nodes to use [all]", count_into(engine.nodes, 1, 1024));
  table.value("--chunk", "TOKENS", "Most prompt tokens in one step [512]; changes no result",
              count_into(engine.chunk_tokens, 1, 65536));
  add_isa(table, engine.isa);
  table.value("--numerics", "PROFILE", "auto, dp or amx: the order of additions, see\ndocs/numerics.md",
              text_into(engine.numerics));
  table.value("--gemm", "NAME", "Matrix kernel by name ('doctor' lists them) [auto]", text_into(engine.gemm));
}

void add_sampling(OptionTable& table, SamplingOptions& s) {
  table.group("Sampling (what is not given comes from generation_config.json)");
  table.flag("--greedy", "Always the most probable token", [&s] { s.greedy = true; });
  table.value("--temperature,--temp", "T", "0 is greedy", number_into(s.temperature));
  table.value("--top-k", "K", "Keep the K most probable tokens; 0: all", count_into(s.top_k, 0, INT32_MAX));
  table.value("--top-p", "P", "Keep the fewest tokens that have probability P", number_into(s.top_p));
  table.value("--min-p", "P", "Keep tokens with P times the largest probability", number_into(s.min_p));
  table.value("--presence-penalty", "X", "Against tokens already in the answer, -2 .. 2",
              number_into(s.presence_penalty));
  table.value("--frequency-penalty", "X", "The same for each occurrence, -2 .. 2", number_into(s.frequency_penalty));
  table.value("--repetition-penalty", "X", "Over 1: against tokens in prompt and answer",
              number_into(s.repetition_penalty));
  table.value("--seed", "N", "The same seed gives the same answer [random, printed]", seed_into(s.seed));
}

Result<void> require_model(const OptionTable& table, const std::string& model) {
  if (model.empty()) return table.usage("no model: give --model with a directory or a name");
  return {};
}

// Commands ------------------------------------------------------------------------------------------------------------

constexpr const char* kRunFooter = R"(Commands (first argument; each has its own --help):
  plan          How much memory a model needs here and whether it fits
  doctor        What this machine offers and what hinders it
  score         Probability of a text under a model: perplexity, logits
  tokenize      Text on stdin to token ids in JSON
  detokenize    Token ids in JSON on stdin to text
  synth         Write a checkpoint with random weights

With a terminal and no prompt this is a chat; with text on stdin that text is
the prompt. The answer goes to stdout, everything else to stderr.
Every option of the groups General, Model, Machine and Sampling has a variable:
CPUINFER_ROPE_SCALING for --rope-scaling. Options win over variables.

Examples:
  cpuinfer --model models/demo
  cpuinfer --model qwen3-30b-a3b --ctx 32k --prompt "Why is the sky blue?"
  cpuinfer --model DIR --raw --greedy --max-tokens 100 < beginning.txt)";

// Whether an option stands on the command line, as "--name" or "--name=value".
bool given(const std::vector<std::string>& arguments, std::initializer_list<std::string_view> names) {
  return std::any_of(arguments.begin(), arguments.end(), [&](const std::string& argument) {
    const std::string_view name = std::string_view(argument).substr(0, argument.find('='));
    return std::find(names.begin(), names.end(), name) != names.end();
  });
}

Result<CommandLine> parse_run(const std::vector<std::string>& arguments, const Environment& environment) {
  RunOptions o;
  int think_flags = 0;  // 1: --think was given, 2: --no-think
  OptionTable table("cpuinfer", "Large language models on CPUs: chat, or answer one prompt.");
  add_model(table, o.model);
  table.group("Prompt");
  table.value("-p,--prompt", "TEXT", "Answer this text and end", text_into(o.prompt), Variable::kNo);
  table.value("-f,--prompt-file", "FILE", "Answer the text of this file ('-': stdin) and end", text_into(o.prompt_file),
              Variable::kNo);
  table.value("--system", "TEXT", "System message before the conversation", text_into(o.system), Variable::kNo);
  table.flag("--raw", "No chat template: continue the text", [&o] { o.raw = true; }, Variable::kNo);
  table.flag(
      "--think", "Let the model think before it answers", [&] { think_flags |= 1, o.think = true; }, Variable::kNo);
  table.flag(
      "--no-think", "Begin the answer after an empty thought", [&] { think_flags |= 2, o.think = false; },
      Variable::kNo);
  add_sampling(table, o.sampling);
  table.group("Answer");
  table.value("-n,--max-tokens", "N", "End after N tokens [as many as the context holds]",
              count_into(o.max_tokens, 1, INT64_MAX));
  table.value(
      "--stop", "TEXT", "End before this text; may be given several times",
      [&o](std::string_view, const std::string& text) -> Result<void> {
        if (text.empty()) return fail(ErrorCode::kUsage, "--stop is empty; it must be a text that ends the answer");
        o.stop_strings.push_back(text);
        return {};
      },
      Variable::kNo);
  table.value("--logprobs", "N",
              "Log-probabilities of each token and its N best\nalternatives, 0 .. 20; a table on stderr",
              count_into(o.logprobs, 0, 20), Variable::kNo);
  add_json(table, o.json, "One JSON object per token on stdout, then one with the\nstatistics");
  add_console(table, o.console, environment);
  bool version = false;
  table.flag("--version", "Print the version", [&version] { version = true; }, Variable::kNo);
  table.footer(kRunFooter);
  TRY_ASSIGN(const std::optional<std::string> help, table.parse(arguments, environment));
  if (help) return ShowText{*help};
  if (version) return ShowText{"cpuinfer " CPUINFER_VERSION "\n"};
  TRY(require_model(table, o.model.model));
  if (o.prompt && o.prompt_file) return table.usage("--prompt and --prompt-file exclude each other");
  if (o.raw && (o.system || o.think))
    return table.usage("--raw continues a text: --system, --think and --no-think mean nothing there");
  if (think_flags == 3) return table.usage("--think and --no-think exclude each other");
  // Of two that contradict each other, the one on the command line wins over the other's environment variable.
  const bool greedy_given = given(arguments, {"--greedy"});
  const bool temperature_given = given(arguments, {"--temperature", "--temp"});
  if (greedy_given && !temperature_given) o.sampling.temperature.reset();
  if (temperature_given && !greedy_given) o.sampling.greedy = false;
  if (o.sampling.greedy && o.sampling.temperature.value_or(0) != 0)
    return table.usage("--greedy and --temperature exclude each other (a temperature of 0 is greedy)");
  return o;
}

Result<CommandLine> parse_plan(const std::vector<std::string>& arguments, const Environment& environment) {
  PlanOptions o;
  OptionTable table("cpuinfer plan",
                    "Print the memory a model needs here and whether it fits; reads no weights.\n"
                    "Exit status 0 if it fits, 78 if not.");
  add_model(table, o.model);
  add_console(table, o.console, environment);
  add_json(table, o.json, "Print JSON");
  TRY_ASSIGN(const std::optional<std::string> help, table.parse(arguments, environment));
  if (help) return ShowText{*help};
  TRY(require_model(table, o.model.model));
  return o;
}

Result<CommandLine> parse_doctor(const std::vector<std::string>& arguments, const Environment& environment) {
  DoctorOptions o;
  OptionTable table("cpuinfer doctor",
                    "Check whether this machine is set up so that models run well.\n"
                    "Exit status 1 if something keeps them from running.");
  add_isa(table, o.isa);
  add_console(table, o.console, environment);
  add_json(table, o.json, "Print JSON");
  TRY_ASSIGN(const std::optional<std::string> help, table.parse(arguments, environment));
  if (help) return ShowText{*help};
  return o;
}

Result<CommandLine> parse_tokenize(const std::vector<std::string>& arguments, const Environment& environment) {
  TokenizeOptions o;
  OptionTable table("cpuinfer tokenize", "Print the token ids of the text on stdin as a JSON array.");
  add_model_name(table, o.model);
  table.flag(
      "--no-special", "Take <|im_end|> and the like as plain text", [&o] { o.no_special = true; }, Variable::kNo);
  add_console(table, o.console, environment);
  TRY_ASSIGN(const std::optional<std::string> help, table.parse(arguments, environment));
  if (help) return ShowText{*help};
  TRY(require_model(table, o.model));
  return o;
}

Result<CommandLine> parse_detokenize(const std::vector<std::string>& arguments, const Environment& environment) {
  DetokenizeOptions o;
  OptionTable table("cpuinfer detokenize", "Print the text of the JSON array of token ids on stdin.");
  add_model_name(table, o.model);
  table.flag("--no-special", "Leave out special tokens", [&o] { o.no_special = true; }, Variable::kNo);
  add_console(table, o.console, environment);
  TRY_ASSIGN(const std::optional<std::string> help, table.parse(arguments, environment));
  if (help) return ShowText{*help};
  TRY(require_model(table, o.model));
  return o;
}

Result<CommandLine> parse_score(const std::vector<std::string>& arguments, const Environment& environment) {
  ScoreOptions o;
  OptionTable table("cpuinfer score",
                    "Compute the probability that a model gives to a text (stdin, or a file):\n"
                    "negative log-likelihood in nats, and perplexity.");
  add_model(table, o.model);
  table.group("Text");
  table.value("-f,--file", "FILE", "Text file instead of stdin", text_into(o.file), Variable::kNo);
  table.value("--ids", "FILE", "JSON array of token ids instead of text", text_into(o.ids_file), Variable::kNo);
  table.value("--logits", "FILE.npy", "Write all logits: float32 [tokens, vocab]", text_into(o.logits_file),
              Variable::kNo);
  add_json(table, o.json, "Print JSON, with a hash of all logits");
  add_console(table, o.console, environment);
  TRY_ASSIGN(const std::optional<std::string> help, table.parse(arguments, environment));
  if (help) return ShowText{*help};
  TRY(require_model(table, o.model.model));
  if (o.file && o.ids_file) return table.usage("--file and --ids exclude each other");
  return o;
}

Result<CommandLine> parse_synth(const std::vector<std::string>& arguments, const Environment& environment) {
  SynthOptions o;
  OptionTable table("cpuinfer synth",
                    "Write a checkpoint with random weights: for benches and tests, it writes no sense.");
  table.positional("NAME",
                   "Sizes of: qwen3-0.6b, -1.7b, -4b, -8b, -14b, -32b, -30b-a3b,\n-30b-a3b-2507, -235b-a22b, "
                   "qwen3-coder-480b-a35b, tiny",
                   o.name);
  table.value("-o,--output", "DIR", "Directory to write; must be new or empty", text_into(o.output), Variable::kNo);
  table.value("--config", "FILE", "config.json with the sizes, instead of NAME", text_into(o.config_file),
              Variable::kNo);
  table.value("--layers", "N", "So many layers", count_into(o.layers, 1, 10000), Variable::kNo);
  table.value("--seed", "N", "The same seed gives the same bytes [0]", seed_into(o.seed), Variable::kNo);
  table.value("--dtype", "TYPE", "bf16, f16 or f32 [bf16]",
              choice_into(o.dtype, {{"bf16", DType::kBF16}, {"f16", DType::kF16}, {"f32", DType::kF32}}),
              Variable::kNo);
  table.value("--tokenizer", "DIR", "Copy tokenizer.json and tokenizer_config.json from\nhere", text_into(o.tokenizer),
              Variable::kNo);
  table.value(
      "--shard-size", "SIZE", "Largest file [5GiB]",
      [&o](std::string_view name, const std::string& value) -> Result<void> {
        TRY_ASSIGN(o.shard_bytes, parse_size(name, value));
        return {};
      },
      Variable::kNo);
  table.value("-t,--threads", "N", "Files written at the same time [number of CPUs]",
              count_into(o.threads, 1, kMaxThreads));
  add_console(table, o.console, environment);
  TRY_ASSIGN(const std::optional<std::string> help, table.parse(arguments, environment));
  if (help) return ShowText{*help};
  if (o.name.empty() == !o.config_file) return table.usage("give either a NAME or --config FILE");
  if (o.output.empty()) return table.usage("no directory to write to: give --output DIR");
  return o;
}

struct CommandRow {
  const char* name;
  Result<CommandLine> (*parse)(const std::vector<std::string>&, const Environment&);
};

constexpr CommandRow kCommands[] = {
    {"plan", parse_plan},   {"doctor", parse_doctor}, {"tokenize", parse_tokenize}, {"detokenize", parse_detokenize},
    {"score", parse_score}, {"synth", parse_synth},   {"run", parse_run},
};

}  // namespace

Result<CommandLine> parse_command_line(const std::vector<std::string>& arguments, const Environment& environment) {
  if (arguments.empty() || arguments[0].starts_with('-')) return parse_run(arguments, environment);
  const std::string& name = arguments[0];
  const std::vector<std::string> rest(arguments.begin() + 1, arguments.end());
  if (name == "help")
    return parse_command_line(
        rest.empty() ? std::vector<std::string>{"--help"} : std::vector<std::string>{rest[0], "--help"}, environment);
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
