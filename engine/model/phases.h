// What a forward step spent on each of its phases: time, bytes, arithmetic.
#pragma once

#include <array>
#include <cstdint>

namespace cpuinfer::model {

/// The phases of a forward step, in the order of a layer. A phase ends with the barrier that others wait at.
enum class Phase {
  kEmbedding,  ///< rows of the embedding, rotary tables
  kQkv,        ///< norm, q, k and v
  kAttention,  ///< norm and rotation of heads, keys and values into the cache, attention
  kOutput,     ///< output projection
  kRouter,     ///< norm, router, choice of experts
  kGateUp,     ///< gate and up of experts or of a dense MLP
  kDown,       ///< down of experts or of a dense MLP
  kLmHead,     ///< final norm and logits
};
inline constexpr int kPhases = 8;
const char* phase_name(Phase phase);  // "qkv", "gate/up", ...

/// Of one phase, added up over layers and steps. One worker's, or the team's (see Engine::profile).
struct PhaseCounters {
  int64_t busy_ns = 0;  ///< computing
  int64_t wait_ns = 0;  ///< at the barriers that end the phase
  int64_t bytes = 0;  ///< of packed weights, keys and values read (embedding rows are not counted): each once per step,
                      ///< however often a cache gives them again
  int64_t flops = 0;  ///< multiplications and additions of matrix products, without padding and masked tokens

  PhaseCounters& operator+=(const PhaseCounters& other) {
    busy_ns += other.busy_ns;
    wait_ns += other.wait_ns;
    bytes += other.bytes;
    flops += other.flops;
    return *this;
  }
};
using StepCounters = std::array<PhaseCounters, kPhases>;

}  // namespace cpuinfer::model
