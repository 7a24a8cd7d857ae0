// How fast a plan should decode: by which numbers, and at which contexts.
#pragma once

#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "engine/load/prediction.h"
#include "engine/run/engine.h"
#include "tools/options.h"

namespace cpuinfer::tools {

/// One placement at one context; nothing where it does not fit.
struct PlacedSpeed {
  std::string policy;  ///< "slice", "expert"
  std::optional<load::DecodePrediction> decode;
};

struct ContextSpeed {
  int64_t context_tokens = 0;
  bool beyond_positions = false;  ///< more than the model is made for
  std::vector<PlacedSpeed> placed;
};

/// Of weights that are read during steps.
struct StreamSpeed {
  double disk_bandwidth = 0;  ///< 0: not known
  bool measured = false;
  double bytes_per_token = 0;
  /// If the disk is all that is waited for, and experts are equally likely.
  double tokens_per_second() const { return disk_bandwidth / bytes_per_token; }
};

struct PlanSpeed {
  load::MachineSpeed machine;
  bool bandwidth_measured = false, meeting_measured = false;
  std::vector<ContextSpeed> contexts;  ///< empty: see `missing`
  std::string missing;                 ///< why there are none, and what would give them
  int64_t positions = 0;               ///< that the model is made for
  int nodes = 0, chosen_experts = 0;
  std::optional<StreamSpeed> stream;         ///< absent: all weights are in memory
  std::optional<double> whole_expert_share;  ///< load::whole_expert_share; absent: no experts

  /// The tables for people. Ends with a newline.
  std::string text() const;
  std::string stream_text() const;
  Json json() const;
};

/// What memory and cores give: as the options say; on this machine what they leave open is measured in under half a
/// second. A planned machine, or one without the memory to measure, has no speed unless the options say its bandwidth.
/// Errors: kInterrupted, of load::plan_model.
Result<PlanSpeed> predict_speed(run::Engine& engine, const PlanOptions& options, const std::atomic<bool>* cancel);

}  // namespace cpuinfer::tools
