// The command line: what every command was asked to do, as plain data.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/result.h"
#include "base/types.h"
#include "bench/model_cases.h"
#include "engine/run/engine.h"
#include "numa/machine_selection.h"

namespace cpuinfer::tools {

enum class ProgressMode { kAuto, kBar, kPlain, kNone };

/// What goes to stderr.
struct ConsoleOptions {
  ProgressMode progress = ProgressMode::kAuto;
  bool quiet = false;    ///< only warnings and errors
  bool verbose = false;  ///< debug messages too
  bool color = true;     ///< false: NO_COLOR is set
};

/// Engine and model; engine.model is filled in when `model` has been looked up.
struct ModelOptions {
  std::string model;  ///< a directory or a name
  run::EngineOptions engine;
};

/// What the user gave; the rest comes from generation_config.json.
struct SamplingOptions {
  bool greedy = false;
  std::optional<float> temperature, top_p, min_p, presence_penalty, frequency_penalty, repetition_penalty;
  std::optional<int> top_k;
  std::optional<uint64_t> seed;
};

/// No command: chat, or one answer.
struct RunOptions {
  ConsoleOptions console;
  ModelOptions model;
  SamplingOptions sampling;
  std::optional<std::string> prompt, prompt_file;
  std::optional<std::string> system;
  std::optional<std::string> session_file;  ///< a conversation to go on with and to keep
  bool raw = false;                         ///< continue the text, no chat template
  std::optional<bool> think;                ///< absent: as the template does by itself
  int64_t max_tokens = 0;                   ///< 0: generation_config.json, else as many as the context holds
  std::vector<std::string> stop_strings;
  std::optional<int> logprobs;
  bool profile = false;  ///< at the end, what the phases of the steps took
  bool json = false;
};

/// Bytes per second and seconds; absent: measured, assumed or not counted.
struct SpeedOptions {
  std::optional<double> node_bandwidth, remote_bandwidth, core_bandwidth, disk_bandwidth, meeting;
};

struct PlanOptions {
  ConsoleOptions console;
  ModelOptions model;                ///< its planned_machine is made from topology and node_memory
  std::string synthetic;             ///< name of a published model's sizes (named_config) instead of a model; or empty
  std::optional<int> layers;         ///< of a synthetic model
  std::string topology;              ///< a machine in hwloc's notation; empty: this machine
  std::vector<int64_t> node_memory;  ///< of all its nodes, or of each; empty: as the topology says
  SpeedOptions speed;
  std::optional<std::string> svg_file;  ///< to write a picture to
  bool json = false;
};

struct DoctorOptions {
  ConsoleOptions console;
  std::string isa;         ///< cap on instruction sets; empty: none
  bool placement = false;  ///< load `model`, use it a little, and look at where its memory and threads are
  ModelOptions model;      ///< for placement
  bool json = false;
};

struct TokenizeOptions {
  ConsoleOptions console;
  std::string model;
  bool no_special = false;
};
struct DetokenizeOptions {
  ConsoleOptions console;
  std::string model;
  bool no_special = false;
};

struct ScoreOptions {
  ConsoleOptions console;
  ModelOptions model;
  std::optional<std::string> file, ids_file, logits_file, usage_file;
  bool json = false;
};

struct SynthOptions {
  ConsoleOptions console;
  std::string name;  ///< empty when config_file is given
  std::optional<std::string> config_file;
  std::string output;
  std::optional<int> layers;
  uint64_t seed = 0;
  DType dtype = DType::kBF16;
  std::optional<std::string> tokenizer;  ///< directory to copy tokenizer files from
  int threads = 0;
  int64_t shard_bytes = 5_GiB;
};

struct PackOptions {
  ConsoleOptions console;
  std::string model;          ///< directory or name; empty: synthetic
  std::string synthetic;      ///< name of a published model's sizes (named_config), packed without a checkpoint
  std::optional<int> layers;  ///< of a synthetic model
  uint64_t seed = 0;          ///< of a synthetic model
  std::optional<std::string> tokenizer;  ///< of a synthetic model: directory to copy tokenizer files from
  std::string output;
  int threads = 0;
};

/// `cpuinfer bench host`.
struct BenchHostOptions {
  ConsoleOptions console;
  std::string model;  ///< directory or name of the model whose files are read for the disk's speed; empty: none
  std::optional<std::string> disk;  ///< directory for a file to read, if no model is given; absent: the system's
  int threads = 0;
  numa::MachineOptions machine;
  std::string isa;           ///< cap on instruction sets; empty: none
  int64_t buffer_bytes = 0;  ///< read per node; 0: 1 GiB, less where memory is short
  bool quick = false;        ///< small buffers, short samples: shows that it works, not how fast
  bool json = false;
};

/// `cpuinfer bench kernels`.
struct BenchKernelsOptions {
  ConsoleOptions console;
  std::string shapes = "30b";  ///< models whose matrices are taken
  std::vector<int> rows;       ///< of activations; empty: 1 to 4096
  std::string kernel;          ///< only rows of this name; empty: all
  int threads = 1;             ///< kernels are one thread's work
  numa::MachineOptions machine;
  std::string isa;     ///< cap on instruction sets; empty: none
  bool quick = false;  ///< small and short: shows that it works, not how fast
  bool json = false;
};

/// `cpuinfer bench load`.
struct BenchLoadOptions {
  ConsoleOptions console;
  std::string model;  ///< directory or name; never empty
  int64_t memory_limit_bytes = 0;
  int threads = 0;
  numa::MachineOptions machine;
  int repeats = 3;     ///< beside the first load
  bool warm = false;   ///< from the page cache; the disk is not measured
  bool quick = false;  ///< short samples of the disk: shows that it works, not how fast
  bool json = false;
};

/// `cpuinfer bench model`.
struct BenchModelOptions {
  ConsoleOptions console;
  std::string model;          ///< a directory or a name; empty: synthetic
  std::string synthetic;      ///< name of a published model's sizes (named_config); weights are made in memory
  std::optional<int> layers;  ///< of a synthetic model
  uint64_t seed = 0;          ///< of a synthetic model
  run::EngineOptions engine;  ///< the rest of it; context, sequences and experts come from the cases
  bench::CaseLists cases;
  int repeats = 0;       ///< 5, or 2 when quick, if not given
  bool profile = false;  ///< the tables of phases too
  bool quick = false;    ///< few tokens, short samples: shows that it works, not how fast
  bool json = false;
};

/// `cpuinfer bench store`.
struct BenchStoreOptions {
  ConsoleOptions console;
  std::string model;          ///< a directory or a name; empty: synthetic
  std::string synthetic;      ///< name of a published model's sizes (named_config); weights are made in memory
  std::optional<int> layers;  ///< of a synthetic model
  run::EngineOptions engine;  ///< the rest of it, with the store
  std::vector<int64_t> prefixes = {32768, 131072};
  bool quick = false;  ///< short samples of the disk: shows that it works, not how fast
  bool json = false;
};

/// Text for stdout instead of a command: help or version.
struct ShowText {
  std::string text;
};

using CommandLine = std::variant<ShowText, RunOptions, PlanOptions, DoctorOptions, TokenizeOptions, DetokenizeOptions,
                                 ScoreOptions, SynthOptions, PackOptions, BenchHostOptions, BenchKernelsOptions,
                                 BenchLoadOptions, BenchModelOptions, BenchStoreOptions>;

/// Gives an environment variable's value, or nullopt.
using Environment = std::function<std::optional<std::string>(const char*)>;

/// Reads `arguments` (without the program's name). An option that is not given takes its value from its variable
/// (--rope-scaling: CPUINFER_ROPE_SCALING), else its default. kUsage: unknown command or option with the nearest name,
/// value out of range with option, value and range.
Result<CommandLine> parse_command_line(const std::vector<std::string>& arguments, const Environment& environment);

}  // namespace cpuinfer::tools
