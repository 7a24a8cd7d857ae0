// The options of `cpuinfer` without a command: chat, or one answer.
#include <algorithm>
#include <initializer_list>

#include "tools/option_groups.h"

namespace cpuinfer::tools {
namespace {

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

constexpr const char* kRunFooter = R"(Commands (first argument; each has its own --help):
  plan          How much memory a model needs here and whether it fits
  doctor        What this machine offers and what hinders it
  score         Probability of a text under a model: perplexity, logits
  tokenize      Text on stdin to token ids in JSON
  detokenize    Token ids in JSON on stdin to text
  synth         Write a checkpoint with random weights
  bench         Measure this machine and what runs on it

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

}  // namespace

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
  table.value("--session", "FILE", "Go on with the conversation in FILE, and keep it there", text_into(o.session_file),
              Variable::kNo);
  table.flag("--raw", "No chat template: continue the text", [&o] { o.raw = true; }, Variable::kNo);
  table.flag(
      "--think", "Let the model think before it answers", [&] { think_flags |= 1, o.think = true; }, Variable::kNo);
  table.flag(
      "--no-think", "Begin the answer after an empty thought", [&] { think_flags |= 2, o.think = false; },
      Variable::kNo);
  add_kv_store(table, o.model.engine);
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
  table.flag(
      "--profile", "At the end, print what each phase of a step took, and\nwhat this machine could do, on stderr",
      [&o] { o.profile = true; }, Variable::kNo);
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
  TRY(check_kv_store(table, o.model.engine));
  // Of two that contradict each other, the one on the command line wins over the other's environment variable.
  const bool greedy_given = given(arguments, {"--greedy"});
  const bool temperature_given = given(arguments, {"--temperature", "--temp"});
  if (greedy_given && !temperature_given) o.sampling.temperature.reset();
  if (temperature_given && !greedy_given) o.sampling.greedy = false;
  if (o.sampling.greedy && o.sampling.temperature.value_or(0) != 0)
    return table.usage("--greedy and --temperature exclude each other (a temperature of 0 is greedy)");
  return o;
}

}  // namespace cpuinfer::tools
