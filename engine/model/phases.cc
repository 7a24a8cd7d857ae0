#include "engine/model/phases.h"

namespace cpuinfer::model {

const char* phase_name(Phase phase) {
  switch (phase) {
    case Phase::kEmbedding: return "embedding";
    case Phase::kQkv: return "qkv";
    case Phase::kAttention: return "attention";
    case Phase::kOutput: return "o";
    case Phase::kRouter: return "router";
    case Phase::kGateUp: return "gate/up";
    case Phase::kDown: return "down";
    case Phase::kLmHead: return "lm_head";
  }
  return "";
}

}  // namespace cpuinfer::model
