// Tests of prompts that begin with pages from disk.
#pragma once

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "base/log.h"
#include "tests/engine/checkpoint/temporary_directory.h"
#include "tests/engine/run/synthetic_engine.h"

namespace cpuinfer::run {

inline constexpr int kPage = kernels::kLeafTokens;

// A directory for a store, removed at the end, and the warnings meanwhile.
class Directory {
 public:
  Directory() {
    set_log_sink([this](LogLevel level, std::string_view text) {
      if (level == LogLevel::kWarn) warnings += std::string(text) + "\n";
    });
  }
  ~Directory() { set_log_sink(nullptr); }
  std::filesystem::path store() const { return directory_.path() / "kv"; }
  std::vector<std::filesystem::path> pages() const {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(store() / "pages")) files.push_back(entry.path());
    return files;
  }

  std::string warnings;

 private:
  checkpoint::TemporaryDirectory directory_;
};

inline std::vector<TokenId> tokens_up_to(int64_t count, int seed = 0) {
  std::vector<TokenId> tokens(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) tokens[i] = static_cast<TokenId>((i * 37 + i / 11 + seed * 13) % 199);
  return tokens;
}

inline Sequence started(Engine& engine) {
  auto sequence = engine.start_sequence(engine.context_tokens());
  REQUIRE(sequence);
  return std::move(*sequence);
}

struct Answer {
  ReusedTokens reused;
  std::vector<float> logits;  // of the last token
};

// The logits after `tokens`, with as much of them reused as can be.
inline Answer answer(Engine& engine, Sequence& sequence, std::span<const TokenId> tokens) {
  Answer result;
  const auto reused = engine.reuse(sequence, tokens.first(tokens.size() - 1));
  REQUIRE_MESSAGE(reused, (reused ? "" : reused.error().message));
  result.reused = *reused;
  AppendOptions options;
  options.logits = [&](int64_t, std::span<const std::span<const float>> logits) {
    result.logits.assign(logits.back().begin(), logits.back().end());
  };
  const auto done = engine.append(sequence, tokens.subspan(static_cast<size_t>(reused->total())), options);
  REQUIRE_MESSAGE(done, (done ? "" : done.error().message));
  REQUIRE(sequence.length() == static_cast<int64_t>(tokens.size()));
  return result;
}

// The same in an engine of its own, that is gone afterwards.
inline Answer answer_once(const EngineOptions& options, std::span<const TokenId> tokens) {
  const auto engine = loaded_engine(options);
  Sequence sequence = started(*engine);
  return answer(*engine, sequence, tokens);
}

inline bool same(const Answer& a, const Answer& b) {
  return a.logits.size() == b.logits.size() &&
         std::memcmp(a.logits.data(), b.logits.data(), a.logits.size() * sizeof(float)) == 0;
}

}  // namespace cpuinfer::run
