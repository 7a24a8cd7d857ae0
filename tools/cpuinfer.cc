// main: reads the command line, runs one command, turns its error into a message and an exit code.
#include <malloc.h>
#include <signal.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <new>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/log.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/options.h"
#include "tools/output.h"
#include "tools/signals.h"

namespace cpuinfer::tools {
namespace {

Result<int> execute(const ShowText& text) {
  TRY(write_stdout(text.text));
  return kExitOk;
}
Result<int> execute(const RunOptions& options) { return run_command(options); }
Result<int> execute(const PlanOptions& options) { return plan_command(options); }
Result<int> execute(const DoctorOptions& options) { return doctor_command(options); }
Result<int> execute(const TokenizeOptions& options) { return tokenize_command(options); }
Result<int> execute(const DetokenizeOptions& options) { return detokenize_command(options); }
Result<int> execute(const ScoreOptions& options) { return score_command(options); }
Result<int> execute(const SynthOptions& options) { return synth_command(options); }
Result<int> execute(const PackOptions& options) { return pack_command(options); }
Result<int> execute(const BenchHostOptions& options) { return bench_host_command(options); }
Result<int> execute(const BenchKernelsOptions& options) { return bench_kernels_command(options); }
Result<int> execute(const BenchLoadOptions& options) { return bench_load_command(options); }
Result<int> execute(const BenchModelOptions& options) { return bench_model_command(options); }
Result<int> execute(const BenchStoreOptions& options) { return bench_store_command(options); }

Result<int> execute_command_line(const std::vector<std::string>& arguments) {
  TRY_ASSIGN(const CommandLine command, parse_command_line(arguments, [](const char* name) {
               const char* value = std::getenv(name);
               return value == nullptr ? std::nullopt : std::optional<std::string>(value);
             }));
  return std::visit([](const auto& options) { return execute(options); }, command);
}

int report(const Error& error) {
  // A reader that has gone is the normal end of "| head": nothing to say, as for every filter.
  if (error.code != ErrorCode::kInterrupted)
    log_error("{}", error.message);
  else if (pending_signal() != SIGPIPE)
    log_line(LogLevel::kInfo, error.message);
  return exit_code(error.code, pending_signal());
}

}  // namespace
}  // namespace cpuinfer::tools

int main(int argc, char** argv) {
  using namespace cpuinfer;
  // Threads allocate next to nothing: with one arena for all, none reserves 64 MiB of address space, which `ulimit -v`
  // would count, for its own.
  mallopt(M_ARENA_MAX, 1);
  tools::claim_standard_streams();
  tools::install_signal_handlers();
  try {
    const Result<int> code =
        tools::execute_command_line(std::vector<std::string>(argv + std::min(argc, 1), argv + argc));
    return code ? *code : tools::report(code.error());
  } catch (const std::bad_alloc&) {
    return tools::report({ErrorCode::kDoesNotFit, "out of memory"});
  } catch (const std::exception& exception) {
    return tools::report({ErrorCode::kInternal, std::string("internal error, please report it: ") + exception.what()});
  }
}
