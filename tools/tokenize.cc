// cpuinfer tokenize, cpuinfer detokenize: text to ids in JSON and back.
#include <string>
#include <vector>

#include "base/format.h"
#include "engine/checkpoint/tokenizer.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/output.h"
#include "tools/progress.h"
#include "tools/session.h"
#include "tools/signals.h"

namespace cpuinfer::tools {

Result<int> tokenize_command(const TokenizeOptions& options) {
  Console console(options.console);
  TRY_ASSIGN(const std::filesystem::path directory, resolve_model(options.model));
  TRY_ASSIGN(const checkpoint::Tokenizer tokenizer, checkpoint::Tokenizer::open(directory));
  TRY_ASSIGN(const std::string text, read_stdin(kMaxTextBytes));
  const std::vector<TokenId> ids = tokenizer.encode(text, !options.no_special);
  TRY(check_cancel());
  TRY(write_stdout(format("[{}]\n", fmt::join(ids, ","))));
  return kExitOk;
}

Result<int> detokenize_command(const DetokenizeOptions& options) {
  Console console(options.console);
  TRY_ASSIGN(const std::filesystem::path directory, resolve_model(options.model));
  TRY_ASSIGN(const checkpoint::Tokenizer tokenizer, checkpoint::Tokenizer::open(directory));
  TRY_ASSIGN(const std::string text, read_stdin(kMaxTextBytes));
  TRY_ASSIGN(const std::vector<TokenId> ids, parse_ids(text, "stdin"));
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= tokenizer.id_limit())
      return fail(ErrorCode::kBadInput, format("stdin: element {} is {}; this tokenizer's ids end at {}", i, ids[i],
                                               tokenizer.id_limit() - 1));
  }
  TRY(write_stdout(tokenizer.decode(ids, options.no_special)));
  return kExitOk;
}

}  // namespace cpuinfer::tools
