// From options to a loaded model: what run, chat and score share.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "engine/checkpoint/tokenizer.h"
#include "engine/run/engine.h"
#include "engine/run/generation.h"
#include "engine/run/sampler.h"
#include "tools/options.h"
#include "tools/progress.h"

namespace cpuinfer::tools {

/// The longest text or list of ids that is read from a file or stdin.
inline constexpr int64_t kMaxTextBytes = 256_MiB;

/// The directory of a model, by the rules of checkpoint::find_model and this process's environment.
Result<std::filesystem::path> resolve_model(const std::string& name);

/// A model with the sizes of a published one (named_config), perhaps of so many layers. Errors: kUsage.
Result<run::SyntheticModel> synthetic_model(const std::string& name, std::optional<int> layers, uint64_t seed);

/// Looks the model up and prepares the engine; reads no weights.
Result<std::unique_ptr<run::Engine>> prepare_engine(const ModelOptions& options);

/// Prints what runs (Engine::describe and `facts`), then loads with a progress bar.
/// kDoesNotFit with the plan's table before anything is read; kInterrupted.
Result<void> load_engine(run::Engine& engine, const std::vector<std::string>& facts, Console& console);

/// On a machine with several nodes: says on how many of the pages that are in use the system kept to the plan, as a
/// fact after loading and as a debug message later (`loaded` false), and warns if they are too few. Nothing on one
/// node.
void report_placement(run::Engine& engine, Console& console, bool loaded);

/// With `--rope-scaling auto`: says which scaling a sequence has, and for what length (`length` names it: "prompt +
/// answer").
void report_rope(const run::Engine& engine, const run::Sequence& sequence, std::string_view length, Console& console);

/// What the user asked for, completed by generation_config.json. do_sample false, or a file (or no file) that says
/// nothing about sampling, is greedy. A seed that is needed and not given is chosen at random.
Result<run::SamplingParams> choose_sampling(const SamplingOptions& options, const model::GenerationDefaults& defaults);

/// "sampling  temperature 0.6, top-k 20, top-p 0.95, seed 123", or "sampling  greedy".
std::string describe(const run::SamplingParams& sampling);

/// True if the tokenizer has the special tokens of ChatML.
bool has_chatml(const checkpoint::Tokenizer& tokenizer);

/// The tokens that end an answer: those of generation_config.json, else of config.json and tokenizer_config.json; in a
/// chat <|im_end|> too.
std::vector<TokenId> stop_tokens(const run::Engine& engine, const checkpoint::Tokenizer& tokenizer, bool chat);

/// The statistics line after an answer.
std::string statistics(const run::Engine& engine, const run::GenerationResult& result);

/// The exit code after an answer that was interrupted, with a line that says what is kept: kExitTryAgain while the
/// prompt was computed and the KV store has what was done; otherwise that of the signal.
int interrupted_code(const run::Engine& engine, const run::GenerationResult& result);

/// kUsage if a text has more bytes than all tokens of a context can stand for, so that it need not be tokenized, which
/// takes several times its memory, to know that it does not fit.
Result<void> check_text_length(std::string_view text, const checkpoint::Tokenizer& tokenizer, int64_t context_tokens);

/// A text file given by the user, whole. "-" is stdin.
Result<std::string> read_text(const std::string& path);

/// A JSON array of token ids. Errors name `where`.
Result<std::vector<TokenId>> parse_ids(std::string_view text, std::string_view where);

}  // namespace cpuinfer::tools
