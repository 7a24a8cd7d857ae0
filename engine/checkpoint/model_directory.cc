#include "engine/checkpoint/model_directory.h"

#include <algorithm>
#include <cctype>
#include <system_error>
#include <utility>

#include "base/format.h"
#include "base/text.h"
#include "engine/checkpoint/checkpoint_file.h"
#include "engine/checkpoint/safetensors_name.h"

// Only this file includes the TOML library.
#define TOML_EXCEPTIONS 0
#define TOML_HEADER_ONLY 1
#include <toml++/toml.h>

namespace cpuinfer::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxAliasBytes = 64 * 1024;
constexpr std::string_view kHubPrefix = "models--";

bool is_model(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path / "config.json", ignored);
}

// Names of the entries, sorted; nothing when the directory cannot be read: it is only one of many places.
std::vector<std::string> list(const fs::path& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error))
    names.push_back(it->path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return out;
}

// NAME.toml: path = "DIR".
Result<fs::path> read_alias(const fs::path& file) {
  const auto bad = [&](const std::string& what) {
    return fail(ErrorCode::kBadInput, format("{}: {}", file.string(), what));
  };
  TRY_ASSIGN(const std::string text, read_whole_file(file, kMaxAliasBytes));
  const toml::parse_result parsed = toml::parse(text);
  if (!parsed)
    return bad(format("line {}: {}", parsed.error().source().begin.line, std::string(parsed.error().description())));
  const toml::table& table = parsed.table();
  for (const auto& [key, value] : table)
    if (key.str() != "path")
      return bad(format("line {}: unknown key {}, expected path = \"DIRECTORY\"", value.source().begin.line,
                        in_quotes(key.str())));
  const std::optional<std::string> target = table["path"].value_exact<std::string>();
  if (!target || target->empty()) return bad("expected path = \"DIRECTORY\"");
  const fs::path directory = file.parent_path() / *target;
  std::error_code ignored;
  if (!fs::is_directory(directory, ignored))
    return fail(ErrorCode::kNotFound,
                format("{}: path leads to {}, which is no directory", file.string(), directory.string()));
  return directory;
}

// The snapshot that refs/main names, else the newest one that has a config.
std::optional<fs::path> hub_snapshot(const fs::path& repository) {
  const fs::path snapshots = repository / "snapshots";
  if (auto revision = read_whole_file(repository / "refs" / "main", 256); revision) {
    const std::string& text = *revision;
    const bool plain =
        !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isalnum(c) != 0; });
    if (plain && is_model(snapshots / text)) return snapshots / text;
  }
  std::optional<fs::path> newest;
  fs::file_time_type newest_time;
  for (const std::string& name : list(snapshots)) {
    std::error_code error;
    const fs::file_time_type time = fs::last_write_time(snapshots / name, error);
    if (error || !is_model(snapshots / name) || (newest && time <= newest_time)) continue;
    newest = snapshots / name;
    newest_time = time;
  }
  return newest;
}

// "models--ORG--NAME" -> {"ORG", "NAME"}.
std::optional<std::pair<std::string, std::string>> hub_name(std::string_view entry) {
  if (!entry.starts_with(kHubPrefix)) return std::nullopt;
  entry.remove_prefix(kHubPrefix.size());
  const size_t gap = entry.find("--");
  if (gap == entry.npos) return std::nullopt;
  return std::pair(std::string(entry.substr(0, gap)), std::string(entry.substr(gap + 2)));
}

// ORG/NAME exactly, or NAME of any organisation if only one has it. An empty path means that there is none.
Result<fs::path> find_in_hub(const fs::path& cache, const std::string& wanted) {
  std::vector<std::pair<std::string, fs::path>> hits;
  for (const std::string& entry : list(cache)) {
    const auto name = hub_name(entry);
    if (!name || (wanted != name->second && wanted != name->first + "/" + name->second)) continue;
    if (auto snapshot = hub_snapshot(cache / entry)) hits.emplace_back(name->first + "/" + name->second, *snapshot);
  }
  if (hits.empty()) return fs::path();
  if (hits.size() == 1) return hits.front().second;
  std::vector<std::string> names;
  for (const auto& [name, snapshot] : hits) names.push_back(name);
  return fail(ErrorCode::kUsage, format("model {} is ambiguous: {} in {}; give the whole name", in_quotes(wanted),
                                        fmt::join(names, ", "), cache.string()));
}

std::vector<std::string> known_names(const ModelSearch& search) {
  std::vector<std::string> names;
  for (const fs::path& directory : search.alias_directories)
    for (const std::string& entry : list(directory))
      if (entry.size() > 5 && entry.ends_with(".toml")) names.push_back(entry.substr(0, entry.size() - 5));
  for (const fs::path& directory : search.model_directories)
    for (const std::string& entry : list(directory))
      if (is_model(directory / entry)) names.push_back(entry);
  for (const fs::path& cache : search.hub_caches)
    for (const std::string& entry : list(cache))
      if (const auto name = hub_name(entry); name && hub_snapshot(cache / entry))
        names.push_back(name->first + "/" + name->second);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

// Nearest first: few edits, ignoring case, or one contains the other. A hub model is near by its bare name, too.
std::vector<std::string> close_names(const std::string& wanted, const std::vector<std::string>& names) {
  constexpr size_t kMaxShown = 5, kMaxLength = 200;
  const std::string target = lower(wanted.substr(0, kMaxLength));
  std::vector<std::pair<size_t, std::string>> near;
  for (const std::string& name : names) {
    const std::string whole = lower(name);
    const std::string bare = whole.substr(whole.find('/') == whole.npos ? 0 : whole.find('/') + 1);
    const size_t distance = std::min(edit_distance(target, whole), edit_distance(target, bare));
    const bool contains = target.size() >= 3 && (whole.find(target) != whole.npos || target.find(bare) != target.npos);
    if (contains || distance <= std::max<size_t>(2, target.size() / 3)) near.emplace_back(distance, name);
  }
  std::sort(near.begin(), near.end());
  if (near.size() > kMaxShown) near.resize(kMaxShown);
  std::vector<std::string> out;
  for (auto& [distance, name] : near) out.push_back(std::move(name));
  return out;
}

bool is_plain_name(std::string_view name) { return name.find('/') == name.npos && name != "." && name != ".."; }

std::unexpected<Error> miss(const std::string& name, const ModelSearch& search, std::span<const fs::path> searched) {
  std::string text = format("no model {} found. Searched:", in_quotes(name));
  for (const fs::path& place : searched) text += format("\n  {}", place.string());
  if (const auto near = close_names(name, known_names(search)); !near.empty())
    text += format("\nClose names: {}", fmt::join(near, ", "));
  text += "\nGive the directory of a Hugging Face checkpoint, or set CPUINFER_MODELS to the directory that holds it.";
  return fail(ErrorCode::kNotFound, std::move(text));
}

}  // namespace

ModelSearch standard_model_search(const std::function<std::optional<std::string>(const char*)>& variable) {
  const auto directory = [&](const char* name) -> std::optional<fs::path> {
    const std::optional<std::string> value = variable(name);
    if (!value || value->empty()) return std::nullopt;
    return fs::path(*value);
  };
  const std::optional<fs::path> home = directory("HOME");
  ModelSearch search;
  if (const auto config = directory("XDG_CONFIG_HOME")) {
    search.alias_directories.push_back(*config / "cpuinfer/models.d");
  } else if (home) {
    search.alias_directories.push_back(*home / ".config/cpuinfer/models.d");
  }
  search.alias_directories.emplace_back("/etc/cpuinfer/models.d");

  const std::string models = variable("CPUINFER_MODELS").value_or("");
  for (size_t begin = 0; begin < models.size();) {
    const size_t end = std::min(models.find(':', begin), models.size());
    if (end > begin) search.model_directories.emplace_back(models.substr(begin, end - begin));
    begin = end + 1;
  }
  search.model_directories.emplace_back("/var/lib/cpuinfer/models");

  // As huggingface_hub/constants.py.
  if (const auto hub = directory("HF_HUB_CACHE")) {
    search.hub_caches.push_back(*hub);
  } else if (const auto hugging_face = directory("HF_HOME")) {
    search.hub_caches.push_back(*hugging_face / "hub");
  } else if (const auto cache = directory("XDG_CACHE_HOME")) {
    search.hub_caches.push_back(*cache / "huggingface/hub");
  } else if (home) {
    search.hub_caches.push_back(*home / ".cache/huggingface/hub");
  }
  return search;
}

Result<fs::path> find_model(std::string_view name_or_directory, const ModelSearch& search) {
  const std::string name(name_or_directory);
  if (name.empty()) return fail(ErrorCode::kUsage, "the model's name is empty");
  if (name.find('\0') != name.npos)
    return fail(ErrorCode::kUsage, format("the model's name {} holds a NUL byte", in_quotes(name)));
  std::error_code ignored;
  const bool plain = is_plain_name(name);
  // A word that happens to name some directory here is not yet a model; a path is what its user means.
  if (plain ? is_model(name) : fs::exists(name, ignored)) return fs::path(name);
  std::vector<fs::path> searched{name};

  if (plain) {
    for (const fs::path& directory : search.alias_directories) {
      const fs::path file = directory / (name + ".toml");
      if (fs::exists(file, ignored)) return read_alias(file);
      searched.push_back(file);
    }
    for (const fs::path& directory : search.model_directories) {
      if (is_model(directory / name)) return directory / name;
      searched.push_back(directory / name);
    }
  }
  const bool hub_form = plain || (std::count(name.begin(), name.end(), '/') == 1 && name[0] != '/' && name[0] != '.');
  for (const fs::path& cache : search.hub_caches) {
    if (!hub_form) break;
    TRY_ASSIGN(fs::path snapshot, find_in_hub(cache, name));
    if (!snapshot.empty()) return snapshot;
    searched.push_back(cache / (plain ? "models--*--" + name : "models--ORG--NAME") / "snapshots");
  }
  // Not a model, but there: opening it says what it lacks.
  if (fs::exists(name, ignored)) return fs::path(name);
  return miss(name, search, searched);
}

}  // namespace cpuinfer::checkpoint
