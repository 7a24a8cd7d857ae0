// Where pages of memory really are. Hides move_pages.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "base/result.h"
#include "numa/topology.h"

namespace cpuinfer::numa {

/// Pages by where they are.
struct PageCount {
  int64_t local = 0;      ///< on the node asked about
  int64_t other = 0;      ///< on any other
  int64_t untouched = 0;  ///< nowhere yet: not written, or swapped out
};

/// Where the pages of [begin, begin + bytes) are, by the system's page size (each small page of a huge one counts). At
/// most `most_pages` of them are looked at, evenly spread over the range, the first among them; the counts are of these
/// and are not scaled up. node_id: the system's number. Moves nothing. REQUIRES: bytes >= 0, most_pages >= 1.
/// Errors: kRuntime (the system does not say, as in containers that forbid move_pages).
Result<PageCount> count_pages(const void* begin, int64_t bytes, int node_id, int64_t most_pages);

/// Why pages that were asked for on node `node` (an index) of this machine are elsewhere, most likely: the end of a
/// sentence that begins with "because". Looks at the state of now, below `root`.
std::string misplacement_cause(const Topology& topology, int node, const std::filesystem::path& root = "/");

}  // namespace cpuinfer::numa
