// How far the positions of a model reach, and which rope a sequence of a planned length gets.
#pragma once

#include <cstdint>
#include <string>

#include "engine/model/config.h"

namespace cpuinfer::model {

/// The length that the model was trained on, which scaling starts from. Pure, as all of these.
int64_t original_positions(const ModelConfig& config);

/// `--rope-scaling auto` for a checkpoint with this config.json, whose own scaling it replaces.
RopeByLength rope_by_length(const ModelConfig& config);

/// The longest context that the positions of a model, with the scaling that the config asks for, are made for.
int64_t position_limit(const ModelConfig& config);

/// The rope of a sequence that may reach planned_tokens tokens, for its whole life: config.rope, or with
/// config.rope_by_length none up to the native positions and then YaRN by the smallest of kYarnFactors that reaches.
RopeConfig sequence_rope(const ModelConfig& config, int64_t planned_tokens);

/// One line for people: describe(config.rope), or what `auto` chooses from.
std::string describe_rope(const ModelConfig& config);

/// What to do about a context over position_limit(): the flag and what it would allow, or that nothing is known.
std::string scaling_advice(const ModelConfig& config, int64_t context_tokens);

}  // namespace cpuinfer::model
