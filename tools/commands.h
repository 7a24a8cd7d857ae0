// One function per command, each in the file of its name. They return the process exit code, or an error for main to
// print and to map (exit_codes.h).
#pragma once

#include "base/result.h"
#include "tools/options.h"

namespace cpuinfer::tools {

Result<int> run_command(const RunOptions& options);
Result<int> plan_command(const PlanOptions& options);
Result<int> doctor_command(const DoctorOptions& options);
Result<int> tokenize_command(const TokenizeOptions& options);
Result<int> detokenize_command(const DetokenizeOptions& options);
Result<int> score_command(const ScoreOptions& options);
Result<int> synth_command(const SynthOptions& options);
Result<int> pack_command(const PackOptions& options);
Result<int> bench_host_command(const BenchHostOptions& options);
Result<int> bench_kernels_command(const BenchKernelsOptions& options);
Result<int> bench_load_command(const BenchLoadOptions& options);
Result<int> bench_model_command(const BenchModelOptions& options);
Result<int> bench_store_command(const BenchStoreOptions& options);

}  // namespace cpuinfer::tools
