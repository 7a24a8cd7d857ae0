// How fast a planned model should decode: from where its bytes will lie and what the memory of each node gives.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/load/memory_plan.h"

namespace cpuinfer::load {

/// What the memory and the cores of a machine give. Bytes per second.
struct MachineSpeed {
  double node_bandwidth = 0;    ///< of one node, read by all of its own workers
  double core_bandwidth = 0;    ///< of one worker that has its node to itself; 0: no limit
  double remote_bandwidth = 0;  ///< of what the workers of a node read of other nodes; 0: not counted
  double meeting_seconds = 0;   ///< of all workers
  double node_meeting_seconds = 0;
};

/// One sequence with a context of some tokens, one more token.
struct DecodePrediction {
  int64_t context_tokens = 0;
  double bytes = 0;            ///< read of all nodes
  double seconds = 0;          ///< reading, fetching and meeting
  double reading_seconds = 0;  ///< the slowest node of each phase
  double meeting_seconds = 0;  ///< workers waiting for each other's arrival, as if nothing overlapped
  double bandwidth_share = 0;  ///< reading at the bandwidth of all nodes, as a part of reading_seconds
  double tokens_per_second() const { return 1 / seconds; }
};

/// Bytes bound a step at batch 1, so each phase takes as long as the slowest node reads. A phase is cut into pieces
/// that workers take whole; when fewer are left than a node has workers, those that have one read no faster than a core
/// can. Phases are met for one after the other. Experts are taken to be equally likely: with whole experts the slowest
/// node reads as many as the most that one node has of those chosen, on average. Arithmetic is not counted. Pure.
/// `planned` with its request; contexts in tokens. REQUIRES: node_bandwidth > 0; others that are 0 do not limit.
std::vector<DecodePrediction> predict_decode(const PlannedModel& planned, const PlanRequest& request,
                                             const MachineSpeed& speed, std::span<const int64_t> contexts);

/// The mean of the largest number of chosen experts on one node, when `chosen` of them are drawn without preference and
/// node i holds node_experts[i]: exact. E.g. 5.06 for 8 of 128 on 2 nodes. REQUIRES: 0 < chosen <= their sum <= 4096.
double expected_most_experts(std::span<const int> node_experts, int chosen);

/// The part of all nodes' bandwidth that reading whole experts reaches on average, if cores do not limit: chosen /
/// (nodes x expected_most_experts). 0.79 for 8 of 128 on 2 nodes. REQUIRES: planned with whole experts.
double whole_expert_share(const PlannedModel& planned);

}  // namespace cpuinfer::load
