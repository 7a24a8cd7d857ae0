// The pre-tokenizer of Qwen2 and Qwen3: a hand-written scanner for its one regular expression.
#pragma once

#include <cstddef>
#include <string_view>

namespace cpuinfer::checkpoint {

/// The pattern of the Split pre-tokenizer (behaviour "Isolated") that first_word_bytes() implements.
inline constexpr std::string_view kQwenWordPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// Length in bytes of the match of kQwenWordPattern at the beginning of `text`; the pattern matches everywhere.
/// REQUIRES: well-formed UTF-8, not empty. Splitting a whole text takes linear time. Thread-safe.
size_t first_word_bytes(std::string_view text);

}  // namespace cpuinfer::checkpoint
