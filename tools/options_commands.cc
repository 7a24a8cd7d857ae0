// The options of the commands that look at models, texts and the machine.
#include "tools/option_groups.h"

namespace cpuinfer::tools {

Result<CommandLine> parse_plan(const std::vector<std::string>& arguments, const Environment& environment) {
  PlanOptions o;
  OptionTable table("cpuinfer plan",
                    "Print the memory a model needs here or on another machine, whether it fits, and how\n"
                    "fast it should decode; reads no weights. Exit status 0 if it fits, 78 if not.");
  add_model(table, o.model);
  add_kv_store(table, o.model.engine);
  table.group("Plan");
  table.value("--synthetic", "NAME", "Instead of --model: the sizes of a published model, as\n'synth'",
              text_into(o.synthetic), Variable::kNo);
  table.value("--layers", "N", "Layers of a synthetic model, instead of the published\nnumber",
              count_into(o.layers, 1, 1024), Variable::kNo);
  table.value("--topology", "TEXT", "A machine that is not there, as hwloc writes it:\n\"numa:2 core:56 pu:2\"",
              text_into(o.topology), Variable::kNo);
  table.value(
      "--node-memory", "SIZE[,SIZE...]", "Memory of its nodes: of all, or of each",
      [&o](std::string_view name, const std::string& value) -> Result<void> {
        TRY_ASSIGN(o.node_memory, parse_sizes(name, value));
        return {};
      },
      Variable::kNo);
  table.value("--node-bandwidth", "RATE", "What a node's memory gives its own workers: 250GB/s\n[here: measured now]",
              rate_into(o.speed.node_bandwidth), Variable::kNo);
  table.value("--remote-bandwidth", "RATE", "What a node reads of the others [not counted]",
              rate_into(o.speed.remote_bandwidth), Variable::kNo);
  table.value("--core-bandwidth", "RATE",
              "What one core reads at most [15GB/s; here at least its\nshare of what is measured]",
              rate_into(o.speed.core_bandwidth), Variable::kNo);
  table.value("--disk-bandwidth", "RATE", "What the disk gives streamed weights [here: measured\nnow] and KV pages",
              rate_into(o.speed.disk_bandwidth), Variable::kNo);
  table.value("--meeting", "TIME",
              "Of all workers, each time they wait for each other\n[here: measured now; else 1.5us]",
              time_into(o.speed.meeting), Variable::kNo);
  table.value("--svg", "FILE", "Write a picture of the nodes' memory", text_into(o.svg_file), Variable::kNo);
  add_console(table, o.console, environment);
  add_json(table, o.json, "Print JSON");
  TRY_ASSIGN(const std::optional<std::string> help, table.parse(arguments, environment));
  if (help) return ShowText{*help};
  TRY(check_kv_store(table, o.model.engine));
  if (o.synthetic.empty()) {
    if (o.model.model.empty())
      return table.usage("no model: give --model with a directory or a name, or --synthetic NAME");
    if (o.layers) return table.usage("--layers changes a synthetic model only");
  } else if (table.given("--model")) {
    return table.usage("--model and --synthetic exclude each other");
  }
  if (!o.node_memory.empty() && o.topology.empty())
    return table.usage("--node-memory is of a machine that is not there: give --topology too");
  if (!o.topology.empty() && o.node_memory.empty() && o.topology.find("memory=") == std::string::npos)
    return table.usage("how much memory the nodes of --topology have is not said: give --node-memory");
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
  table.group("Placement");
  table.optional_value(
      "--placement", "POLICY",
      "Load a model, use it a little, and count on which nodes its\npages are and where its threads run; slice or "
      "expert, as\nfor models [slice]",
      [&o](std::string_view name, const std::string& value) -> Result<void> {
        o.placement = true;
        if (value.empty()) return {};
        return choice_into(o.model.engine.whole_experts, {{"slice", false}, {"expert", true}})(name, value);
      },
      Variable::kNo);
  add_model_name(table, o.model.model);
  table.value("-c,--ctx", "TOKENS", "Context, as for models", count_into(o.model.engine.context_tokens, 1, INT64_MAX));
  add_workers(table, o.model.engine.threads, o.model.engine.machine);
  TRY_ASSIGN(const std::optional<std::string> help, table.parse(arguments, environment));
  if (help) return ShowText{*help};
  if (o.placement) TRY(require_model(table, o.model.model));
  o.model.engine.isa = o.isa;
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
  table.value("--write-expert-usage", "FILE", "Write how often each expert was chosen, for\n--expert-usage",
              text_into(o.usage_file), Variable::kNo);
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
  table.value("--layers", "N", "So many layers", count_into(o.layers, 1, 1024), Variable::kNo);
  table.value("--seed", "N", "The same seed gives the same bytes [0]", seed_into(o.seed), Variable::kNo);
  table.value("--dtype", "TYPE", "bf16, f16 or f32 [bf16]",
              choice_into(o.dtype, {{"bf16", DType::kBF16}, {"f16", DType::kF16}, {"f32", DType::kF32}}),
              Variable::kNo);
  table.value("--tokenizer", "DIR", "Copy tokenizer.json and tokenizer_config.json from\nhere", text_into(o.tokenizer),
              Variable::kNo);
  table.value("--shard-size", "SIZE", "Largest file [5GiB]", size_into(o.shard_bytes), Variable::kNo);
  table.value("-t,--threads", "N", "Files written at the same time [number of CPUs]",
              count_into(o.threads, 1, kMaxThreads));
  add_console(table, o.console, environment);
  TRY_ASSIGN(const std::optional<std::string> help, table.parse(arguments, environment));
  if (help) return ShowText{*help};
  if (o.name.empty() == !o.config_file) return table.usage("give either a NAME or --config FILE");
  if (o.output.empty()) return table.usage("no directory to write to: give --output DIR");
  return o;
}

Result<CommandLine> parse_pack(const std::vector<std::string>& arguments, const Environment& environment) {
  PackOptions o;
  OptionTable table("cpuinfer pack",
                    "Write a model with its weights packed in one file: it starts faster, and its weights\n"
                    "may be larger than memory (--weights stream).");
  add_model_name(table, o.model);
  table.value("-o,--output", "DIR", "Model directory to write; must be new or empty", text_into(o.output),
              Variable::kNo);
  table.value("--synthetic", "NAME",
              "Instead of --model: random weights in the sizes of a\npublished model, as 'synth'",
              text_into(o.synthetic), Variable::kNo);
  table.value("--layers", "N", "Layers of a synthetic model, instead of the published\nnumber",
              count_into(o.layers, 1, 1024), Variable::kNo);
  table.value("--seed", "N", "The same seed gives the same weights [0]", seed_into(o.seed), Variable::kNo);
  table.value("--tokenizer", "DIR", "For a synthetic model: copy tokenizer.json and\ntokenizer_config.json from here",
              text_into(o.tokenizer), Variable::kNo);
  table.value("-t,--threads", "N", "Worker threads [one per physical core]", count_into(o.threads, 1, kMaxThreads));
  add_console(table, o.console, environment);
  TRY_ASSIGN(const std::optional<std::string> help, table.parse(arguments, environment));
  if (help) return ShowText{*help};
  if (o.synthetic.empty()) {
    if (o.model.empty()) return table.usage("no model: give --model with a directory or a name, or --synthetic NAME");
    if (o.layers || o.tokenizer || table.given("--seed"))
      return table.usage("--layers, --seed and --tokenizer are of a synthetic model only");
  } else if (table.given("--model")) {
    return table.usage("--model and --synthetic exclude each other");
  }
  if (o.output.empty()) return table.usage("no directory to write to: give --output DIR");
  return o;
}

}  // namespace cpuinfer::tools
