// The figures of a machine as text for people and as JSON.
#pragma once

#include <string>

#include "base/json.h"
#include "bench/host.h"

namespace cpuinfer::bench {

/// Tables; GB and GFLOP are powers of ten.
std::string host_text(const HostFigures& figures);

/// {"cpu", "threads", "nodes", "isa", "buffer_bytes",
///  "read": {best entry, "node_gb_s", "sweep": [entries]}, entry: {"gb_s", "pages", "probe", "streams", "stream_bytes",
///  "prefetch_bytes", "samples"}, "memories": [{"pages", "huge_share"}],
///  "peaks": [{"name", "gflop_s", "one_worker_gflop_s"}], "barriers": [{"name", "ns"}],
///  "disk": {"what", "cache", "direct", "gb_s", "readers", "block_bytes", "sweep": [...]} or null}
Json host_json(const HostFigures& figures);

/// One line: "read 50.1 GB/s; fp32 FMA (avx512) 370 GFLOP/s, ...; barrier 90 ns".
std::string host_summary(const HostFigures& figures);

}  // namespace cpuinfer::bench
