// What the checks of the doctor are written with.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include "tools/doctor.h"

namespace cpuinfer::tools {

inline Check ok(std::string name, std::string detail) { return {std::move(name), Health::kOk, std::move(detail), ""}; }
inline Check warn(std::string name, std::string detail, std::string fix) {
  return {std::move(name), Health::kWarn, std::move(detail), std::move(fix)};
}
inline Check broken(std::string name, std::string detail, std::string fix) {
  return {std::move(name), Health::kFail, std::move(detail), std::move(fix)};
}

/// The first line of a file, "" if it is not there.
inline std::string first_line(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

inline const char* plural(int64_t count) { return count == 1 ? "" : "s"; }

}  // namespace cpuinfer::tools
