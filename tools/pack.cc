// cpuinfer pack: a model directory whose weights are packed in one file.
#include "engine/load/pack.h"

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <system_error>

#include "base/format.h"
#include "base/json.h"
#include "engine/checkpoint/checkpoint.h"
#include "engine/checkpoint/checkpoint_file.h"
#include "engine/checkpoint/tokenizer.h"
#include "engine/load/checkpoint_weights.h"
#include "engine/load/synthetic.h"
#include "numa/machine_selection.h"
#include "tools/commands.h"
#include "tools/exit_codes.h"
#include "tools/progress.h"
#include "tools/session.h"
#include "tools/signals.h"

namespace cpuinfer::tools {
namespace {

namespace fs = std::filesystem;

std::unexpected<Error> cannot(const char* what, const fs::path& path, const std::error_code& error) {
  const bool refused = error == std::errc::permission_denied || error == std::errc::read_only_file_system;
  return fail(refused ? ErrorCode::kPermission : ErrorCode::kRuntime,
              format("{}: cannot {}: {}", path.string(), what, error.message()));
}

// The directory while it is unfinished, beside its place; removed unless it gets there.
class UnfinishedDirectory {
 public:
  static Result<UnfinishedDirectory> create(const fs::path& target) {
    std::error_code error;
    // What exists and is not an empty directory is not written to.
    const bool exists = fs::exists(fs::symlink_status(target, error));
    if (exists && !(fs::is_directory(target, error) && fs::is_empty(target, error)))
      return fail(ErrorCode::kUsage,
                  format("{} exists and is no empty directory; nothing is overwritten", target.string()));
    // Behind a symbolic link, the directory and not the link is replaced.
    const fs::path absolute = (exists ? fs::canonical(target, error) : fs::absolute(target, error)).lexically_normal();
    if (error) return cannot("be found", target, error);
    const fs::path place = absolute.has_filename() ? absolute : absolute.parent_path();
    const fs::path parent = place.parent_path();
    fs::create_directories(parent, error);
    if (error) return cannot("make this directory", parent, error);
    const fs::path path = parent / format(".{}.tmp-{}", place.filename().string(), ::getpid());
    if (!fs::create_directory(path, error)) return cannot("make a temporary directory", path, error);
    return UnfinishedDirectory(path, place);
  }
  UnfinishedDirectory(UnfinishedDirectory&& other) noexcept
      : path_(std::exchange(other.path_, {})), target_(std::move(other.target_)) {}
  UnfinishedDirectory& operator=(UnfinishedDirectory&&) = delete;
  ~UnfinishedDirectory() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }

  const fs::path& path() const { return path_; }
  Result<void> finish() {
    std::error_code error;
    fs::rename(path_, target_, error);
    if (error) return cannot("be renamed into place", target_, error);
    path_.clear();
    // The rename is on disk when its directory is; some file systems cannot say so.
    const int parent = ::open(target_.parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (parent >= 0) {
      ::fsync(parent);
      ::close(parent);
    }
    return {};
  }

 private:
  UnfinishedDirectory(fs::path path, fs::path target) : path_(std::move(path)), target_(std::move(target)) {}
  fs::path path_, target_;
};

Result<void> copy_files(const fs::path& from, const fs::path& to, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    std::error_code ignored;
    if (!fs::exists(from / name, ignored)) continue;
    TRY_ASSIGN(const std::string text, checkpoint::read_whole_file(from / name, kMaxTextBytes));
    TRY(checkpoint::write_whole_file(to / name, text));
  }
  return {};
}

// Where the weights come from.
struct Source {
  std::optional<checkpoint::Checkpoint> checkpoint;  // absent: random numbers
  Json config;
};

Result<Source> open_source(const PackOptions& options) {
  Source source;
  if (options.synthetic.empty()) {
    TRY_ASSIGN(const fs::path directory, resolve_model(options.model));
    TRY_ASSIGN(source.checkpoint, checkpoint::Checkpoint::open(directory));
    if (source.checkpoint->is_packed())
      return fail(ErrorCode::kUsage, format("{}: is packed already", source.checkpoint->packed_path().string()));
    source.config = source.checkpoint->config();
    return source;
  }
  TRY_ASSIGN(const run::SyntheticModel model, synthetic_model(options.synthetic, options.layers, options.seed));
  source.config = model.config;
  return source;
}

Result<void> write_companions(const PackOptions& options, const Source& source, const fs::path& directory, int vocab) {
  if (source.checkpoint)
    return copy_files(
        source.checkpoint->directory(), directory,
        {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"});
  if (options.tokenizer) {
    TRY_ASSIGN(const checkpoint::Tokenizer tokenizer, checkpoint::Tokenizer::open(*options.tokenizer));
    if (tokenizer.id_limit() > vocab)
      return fail(ErrorCode::kUsage, format("{}: token ids up to {}, but the model's vocabulary has {}",
                                            *options.tokenizer, tokenizer.id_limit() - 1, vocab));
    TRY(copy_files(*options.tokenizer, directory, {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}));
  }
  return checkpoint::write_whole_file(directory / "config.json", to_json_text(source.config, 2) + "\n");
}

}  // namespace

Result<int> pack_command(const PackOptions& options) {
  Console console(options.console);
  TRY_ASSIGN(const Source source, open_source(options));
  TRY_ASSIGN(const model::ModelConfig config, model::parse_model_config(source.config));
  TRY_ASSIGN(const std::unique_ptr<model::Model> model, model::create_model(config, model::Placement::even(1)));
  if (source.checkpoint) TRY(load::check_tensors(*model, *source.checkpoint));
  // The file is the same for any number of nodes; one is enough to be as fast as a disk.
  TRY_ASSIGN(numa::Selection use, numa::select_from_machine({.nodes = 1}, options.threads));
  TRY_ASSIGN(const std::unique_ptr<numa::Team> team, numa::Team::create(use.topology, use.team));

  TRY_ASSIGN(UnfinishedDirectory directory, UnfinishedDirectory::create(options.output));
  TRY(write_companions(options, source, directory.path(), config.vocab));
  const load::LoadOptions reading = {.cancel = &cancel_flag(), .page_cache = checkpoint::PageCache::kSpare};
  load::FillWeights fill;
  std::optional<load::CheckpointWeights> weights;
  std::optional<load::SyntheticWeights> numbers;
  if (source.checkpoint) {
    weights.emplace(*model, *source.checkpoint, *team, use.topology, reading);
    fill = [&](std::span<const model::WeightSpec> specs) { return weights->read(specs); };
  } else {
    numbers.emplace(*model, options.seed);
    fill = [&](std::span<const model::WeightSpec> specs) { return numbers->fill(specs, *team, reading); };
  }
  load::PackStatistics packed;
  {
    Progress progress(console, "packing", ProgressUnit::kBytes);
    const load::LoadOptions writing = {.progress = [&](int64_t done, int64_t total) { progress.update(done, total); },
                                       .cancel = &cancel_flag()};
    TRY_ASSIGN(packed, load::write_packed(*model, fill, directory.path() / checkpoint::kPackedName, *team, use.topology,
                                          writing));
  }
  TRY(directory.finish());
  console.line(format("{}: {} packed in {:.1f} s, {:.2f} GB/s, fingerprint {}", options.output,
                      format_bytes(packed.bytes), packed.seconds,
                      static_cast<double>(packed.bytes) / packed.seconds / 1e9, packed.fingerprint.hex()));
  return kExitOk;
}

}  // namespace cpuinfer::tools
