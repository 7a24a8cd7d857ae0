// The conversation on a terminal.
#pragma once

#include "base/result.h"
#include "engine/run/generation.h"
#include "tools/options.h"
#include "tools/progress.h"

namespace cpuinfer::tools {

/// Reads turns from stdin until /bye or Ctrl-D (exit code 0), a second Ctrl-C (130) or SIGTERM (143). `request` has
/// sampling, stops and limits; each turn fills in its prompt. The engine is loaded.
Result<int> chat_session(run::Engine& engine, const checkpoint::Tokenizer& tokenizer, run::GenerationRequest request,
                         const RunOptions& options, Console& console);

}  // namespace cpuinfer::tools
