// The conversation on a terminal.
#pragma once

#include "base/result.h"
#include "engine/run/generation.h"
#include "tools/conversation.h"
#include "tools/options.h"
#include "tools/progress.h"

namespace cpuinfer::tools {

/// Gives `sequence` what it held in a conversation, as far as the KV store has it, and says so; with a progress bar.
/// The rest is computed with the next prompt. Errors: of Engine::reuse.
Result<void> restore_sequence(run::Engine& engine, run::Sequence& sequence, const Conversation& conversation,
                              Console& console);

/// Writes a conversation with what the sequence holds, whose pages the KV store gets, and says so.
/// Errors: of write_conversation.
Result<void> save_conversation(run::Engine& engine, run::Sequence& sequence, Conversation conversation,
                               const std::string& path, Console& console);

/// Reads turns from stdin until /bye or Ctrl-D (exit code 0), a second Ctrl-C (130) or SIGTERM (143, or kExitTryAgain
/// while a prompt is computed that the KV store keeps). `request` has sampling, stops and limits; each turn fills in
/// its prompt. The engine is loaded. Begins with the conversation of options.session_file, if there is such a file, and
/// keeps it up to date after every turn.
Result<int> chat_session(run::Engine& engine, const checkpoint::Tokenizer& tokenizer, run::GenerationRequest request,
                         const RunOptions& options, Console& console);

}  // namespace cpuinfer::tools
