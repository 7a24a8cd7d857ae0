// The files under tests/data/tokenizer, and Qwen3's tokenizer where it is.
#pragma once

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/checkpoint/tokenizer.h"

namespace cpuinfer::checkpoint {

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE_MESSAGE(file.good(), path.string() << " is missing");
  return std::string(std::istreambuf_iterator<char>(file), {});
}

inline std::filesystem::path tokenizer_data() {
  return std::filesystem::path(CPUINFER_SOURCE_DIR) / "tests/data/tokenizer";
}

inline Json read_cases(const char* name) {
  auto json = parse_json(read_text(tokenizer_data() / name), name);
  REQUIRE_MESSAGE(json.has_value(), json.error().message);
  return std::move(*json);
}

inline Tokenizer small_tokenizer() {
  auto tokenizer = Tokenizer::open(tokenizer_data() / "small");
  REQUIRE_MESSAGE(tokenizer.has_value(), tokenizer.error().message);
  return std::move(*tokenizer);
}

/// Qwen3's own files, which are not part of the project: CMake's CPUINFER_QWEN3_TOKENIZER_DIR says where they are. Says
/// so where they are absent.
inline std::optional<Tokenizer> qwen3_tokenizer() {
  const std::filesystem::path folder = CPUINFER_QWEN3_TOKENIZER_DIR;
  if (folder.empty()) {
    MESSAGE("SKIPPED: this check needs Qwen3's tokenizer.json: configure with -DCPUINFER_QWEN3_TOKENIZER_DIR=DIR");
    return std::nullopt;
  }
  auto tokenizer = Tokenizer::open(folder);
  REQUIRE_MESSAGE(tokenizer.has_value(), tokenizer.error().message);
  return std::move(*tokenizer);
}

inline std::vector<TokenId> ids_of(const Json& array) {
  std::vector<TokenId> ids;
  for (const Json& id : array.as_array()) ids.push_back(static_cast<TokenId>(id.as_int()));
  return ids;
}

inline std::string case_text(const Json& item) {
  if (const Json* text = item.find("text")) return text->as_string();
  const std::string& digits = item.find("hex")->as_string();
  std::string bytes;
  for (size_t i = 0; i + 1 < digits.size(); i += 2)
    bytes.push_back(static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16)));
  return bytes;
}

}  // namespace cpuinfer::checkpoint
