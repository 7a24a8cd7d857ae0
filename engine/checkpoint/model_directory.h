// From what the user calls a model to its directory.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace cpuinfer::checkpoint {

/// Where find_model looks, in this order after the explicit path. Directories that do not exist are fine.
struct ModelSearch {
  /// models.d: NAME.toml with `path = "DIR"` (relative to the file) is an alias.
  std::vector<std::filesystem::path> alias_directories;
  /// DIR/NAME is a model.
  std::vector<std::filesystem::path> model_directories;
  /// Hugging Face hub caches: CACHE/models--ORG--NAME/snapshots/REVISION.
  std::vector<std::filesystem::path> hub_caches;
};

/// The usual places: models.d in $XDG_CONFIG_HOME/cpuinfer (or ~/.config/cpuinfer) and /etc/cpuinfer;
/// $CPUINFER_MODELS (colon separated), /var/lib/cpuinfer/models; $HF_HUB_CACHE, else $HF_HOME/hub,
/// else $XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub.
/// `variable` gives an environment variable's value (tools/ passes getenv), or nullopt.
ModelSearch standard_model_search(const std::function<std::optional<std::string>(const char*)>& variable);

/// Finds the directory of a model given by path, alias, name, "ORG/NAME" or the NAME of a hub model.
/// The first hit wins; it is not opened. Errors: kNotFound with the places searched and close names,
/// kBadInput for a broken alias file, kUsage for an empty or ambiguous name.
Result<std::filesystem::path> find_model(std::string_view name_or_directory, const ModelSearch& search);

}  // namespace cpuinfer::checkpoint
