// What users write as values of options: counts, sizes, numbers, rope scalings; and near misses of names.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "engine/model/rope.h"

namespace cpuinfer::tools {

// All errors are kUsage: `name` (the option, or its environment variable), the value and what it must be.

/// A whole number between low and high. Suffixes k, M, G (either case) are powers of 1024: "256k" is 262144, and
/// "1.5k" is 1536.
Result<int64_t> parse_count(std::string_view name, std::string_view text, int64_t low, int64_t high);

/// Bytes: as parse_count, with T too and an optional "B" or "iB": "1.5TiB", "64G", "1MiB".
Result<int64_t> parse_size(std::string_view name, std::string_view text);

/// Bytes per second, more than 0: a number and B/s with k, M, G or T (powers of 1000) or Ki, Mi, Gi or Ti, with or
/// without a space between: "250GB/s", "1.2 TB/s".
Result<double> parse_rate(std::string_view name, std::string_view text);

/// Seconds, not negative: a number and s, ms, us or ns: "1.5us".
Result<double> parse_time(std::string_view name, std::string_view text);

/// Sizes separated by commas, each by parse_size(): "768GiB", "512G,256G".
Result<std::vector<int64_t>> parse_sizes(std::string_view name, std::string_view text);

/// A finite number.
Result<double> parse_number(std::string_view name, std::string_view text);

/// An unsigned 64-bit number.
Result<uint64_t> parse_seed(std::string_view name, std::string_view text);

/// Numbers of CPUs or nodes as taskset takes them, "0-15,32-47": ascending, at least one. `expected` is for the error.
Result<std::vector<int>> parse_numbers(std::string_view name, std::string_view text, std::string_view expected);

/// 1, true, yes, on; 0, false, no, off: for flags in environment variables.
Result<bool> parse_switch(std::string_view name, std::string_view text);

/// TYPE[:FACTOR[:ORIGINAL]] with TYPE default, linear, dynamic or yarn (`auto` is no scaling, but a choice of them).
/// `theta` stays as it is in a RopeConfig.
Result<model::RopeConfig> parse_rope_scaling(std::string_view name, std::string_view text);

/// The name that `wrong` was probably meant to be: the nearest by edit distance, at most a third of its letters away;
/// or empty.
std::string nearest_name(std::string_view wrong, std::span<const std::string> names);

}  // namespace cpuinfer::tools
