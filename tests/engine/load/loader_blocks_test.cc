// Loading when blocks, files and buffers are of all sizes: from the page cache and from the disk.
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/log.h"
#include "tests/engine/load/loader_data.h"

using namespace cpuinfer;
using namespace cpuinfer::load;
using checkpoint::PageCache;

namespace {

std::string config(int hidden, int vocab, int experts, int moe_intermediate) {
  return format(R"({{"architectures":["Qwen3MoeForCausalLM"],"hidden_size":{},"num_hidden_layers":2,
    "num_attention_heads":6,"num_key_value_heads":2,"head_dim":8,"vocab_size":{},"intermediate_size":40,
    "num_experts":{},"num_experts_per_tok":2,"moe_intermediate_size":{},"norm_topk_prob":true,"rms_norm_eps":1e-6,
    "tie_word_embeddings":false,"max_position_embeddings":64,"rope_theta":10000.0,"torch_dtype":"bfloat16"}})",
                hidden, vocab, experts, moe_intermediate);
}

std::filesystem::path weights_of(const Directory& directory) { return directory.path() / "model.safetensors"; }

// The whole pages of a file that are in the page cache, and drops them before if asked to. -1: the system does not say.
int64_t cached_pages(const std::filesystem::path& path, bool drop) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  REQUIRE(descriptor >= 0);
  if (drop) ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
  const auto bytes = static_cast<size_t>(std::filesystem::file_size(path));
  void* const mapping = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, descriptor, 0);
  ::close(descriptor);
  if (mapping == MAP_FAILED) return -1;
  std::vector<unsigned char> resident((bytes + 4095) / 4096);
  const int result = ::mincore(mapping, bytes, resident.data());
  ::munmap(mapping, bytes);
  if (result != 0) return -1;
  return std::count_if(resident.begin(), resident.end(), [](unsigned char flags) { return (flags & 1) != 0; });
}

// A line of /proc/self/status in bytes.
int64_t status_bytes(std::string_view name) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with(name)) return std::stoll(line.substr(name.size() + 1)) * 1024;
  return -1;
}

}  // namespace

TEST_CASE("every type, odd sizes, any nodes, cold or warm: the weights arrive where they belong") {
  set_log_sink([](LogLevel, std::string_view) {});  // of the rounding
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    Directory directory(config(72, 333, 5, 20));
    directory.write(dtype);
    for (const PageCache page_cache : {PageCache::kFill, PageCache::kSpare}) {
      for (const int nodes : {1, 3}) {
        for (const bool cold : {true, false}) {
          if (cold) cached_pages(weights_of(directory), true);
          LoadStatistics statistics;
          const auto loaded =
              load_all(directory, nodes, 2 * nodes, {.statistics = &statistics, .page_cache = page_cache});
          REQUIRE_MESSAGE(loaded, (loaded ? "" : loaded.error().message));
          check_weights(directory, *loaded->model);
          CHECK(statistics.bytes == read_bytes(*loaded->model, dtype));
          if (nodes == 1) CHECK(statistics.bytes == checkpoint::Checkpoint::open(directory.path())->total_bytes());
          CHECK(statistics.direct_bytes <= statistics.bytes);
          CHECK(statistics.workers == kLeastLoaders);  // more than 2 * nodes
          CHECK(statistics.seconds > 0);
          if (page_cache == PageCache::kFill) CHECK(statistics.direct_bytes == 0);
        }
      }
    }
  }
  set_log_sink({});
}

TEST_CASE("many small tensors") {
  Directory directory(config(24, 40, 150, 9));
  directory.write(DType::kBF16);
  for (const PageCache page_cache : {PageCache::kFill, PageCache::kSpare}) {
    const auto loaded = load_all(directory, 1, 3, {.page_cache = page_cache});
    REQUIRE(loaded);
    check_weights(directory, *loaded->model);
  }
}

TEST_CASE("what is not in the page cache comes from the disk and does not fill it; what is there stays") {
  Directory directory(config(512, 2048, 4, 40));
  directory.write(DType::kBF16);
  const std::filesystem::path weights = weights_of(directory);
  const int64_t pages = cached_pages(weights, false);
  LoadStatistics statistics;
  REQUIRE(load_all(directory, 1, 2, {.statistics = &statistics, .page_cache = PageCache::kSpare}));
  if (pages == static_cast<int64_t>(std::filesystem::file_size(weights) + 4095) / 4096) {
    CHECK(statistics.direct_bytes == 0);
    CHECK(cached_pages(weights, false) == pages);
  }
  if (cached_pages(weights, true) != 0) {
    MESSAGE("not checked: the file system of the temporary directory keeps its files in memory");
    return;
  }
  REQUIRE(load_all(directory, 1, 2, {.statistics = &statistics, .page_cache = PageCache::kSpare}));
  // Header, norms and the ends of blocks go through the page cache, with what the kernel reads ahead of them.
  CHECK(cached_pages(weights, false) * 4096 < statistics.bytes / 2);
  if (statistics.direct_bytes == 0) MESSAGE("the file system of the temporary directory has no O_DIRECT");
  REQUIRE(load_all(directory, 1, 2, {.statistics = &statistics, .page_cache = PageCache::kFill}));
  CHECK(statistics.direct_bytes == 0);
  CHECK(cached_pages(weights, false) * 4096 > statistics.bytes / 2);
}

TEST_CASE("peak memory is the packed weights plus a bounded buffer") {
  Directory directory(config(1024, 12000, 2, 40));
  directory.write(DType::kF32);  // 98 MB in the file, 49 MB packed
  set_log_sink([](LogLevel, std::string_view) {});
  constexpr int kWorkers = 2;
  for (const PageCache page_cache : {PageCache::kFill, PageCache::kSpare}) {
    // Writing 5 there makes VmHWM start again from what is used now.
    std::ofstream clear("/proc/self/clear_refs");
    clear << 5 << std::flush;
    const int64_t before = status_bytes("VmRSS:");
    LoadStatistics statistics;
    const auto loaded = load_all(directory, 1, kWorkers, {.statistics = &statistics, .page_cache = page_cache});
    REQUIRE(loaded);
    const int64_t packed = loaded->memory[0].size();
    CHECK(packed > 40'000'000);
    CHECK(statistics.buffer_bytes <= kLeastLoaders * (kBlockBytes + 64_KiB));
    if (!clear.good() || status_bytes("VmHWM:") - before < packed) {
      MESSAGE("peak memory is not checked: the kernel does not start VmHWM again");
      continue;
    }
    // The rest: huge pages begun, libraries and stacks of the first run, what sanitizers take.
    CHECK(status_bytes("VmHWM:") - before < packed + statistics.buffer_bytes + 12_MiB);
  }
  set_log_sink({});
}

TEST_CASE("loading ends within a block of being told to") {
  Directory directory(config(1024, 12000, 2, 40));
  directory.write(DType::kBF16);
  std::atomic<bool> cancel = false;
  int64_t last = 0;
  int calls = 0;
  LoadOptions options;
  options.cancel = &cancel;
  options.progress = [&](int64_t done, int64_t) {
    last = done;
    ++calls;
    cancel = true;
  };
  auto stopped = load_all(directory, 1, 1, options);
  REQUIRE_FALSE(stopped);
  CHECK(stopped.error().code == ErrorCode::kInterrupted);
  CHECK(stopped.error().message == "loading was interrupted");
  CHECK(calls == 1);
  CHECK(last < checkpoint::Checkpoint::open(directory.path())->total_bytes());

  // At any moment, from another thread.
  options.progress = nullptr;
  for (const int microseconds : {0, 50, 200, 1000, 3000, 10000}) {
    cancel = false;
    std::jthread later([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
      cancel = true;
    });
    const auto loaded = load_all(directory, 1, 2, options);
    if (!loaded)
      CHECK(loaded.error().code == ErrorCode::kInterrupted);
    else
      check_weights(directory, *loaded->model);
  }
}

TEST_CASE("a file that shrinks is an error from the disk too, with file, tensor and offset") {
  Directory directory(config(512, 2048, 4, 40));
  directory.write(DType::kBF16);
  const auto checkpoint = checkpoint::Checkpoint::open(directory.path());
  REQUIRE(checkpoint);
  const auto half = std::filesystem::file_size(weights_of(directory)) / 2;
  std::filesystem::resize_file(weights_of(directory), half);
  cached_pages(weights_of(directory), true);
  const checkpoint::TensorReader reader(*checkpoint, PageCache::kSpare);
  const auto buffer = std::make_unique<std::byte[]>(1_MiB + 2 * checkpoint::TensorReader::kAlignment);
  void* aligned = buffer.get();
  size_t space = 1_MiB + 2 * checkpoint::TensorReader::kAlignment;
  REQUIRE(std::align(checkpoint::TensorReader::kAlignment, 1_MiB, aligned, space) != nullptr);
  int good = 0, bad = 0;
  for (const checkpoint::TensorRef& tensor : checkpoint->tensors()) {
    const int64_t bytes = std::min(tensor.bytes, 1_MiB - checkpoint::TensorReader::kAlignment);
    const auto read = reader.read(tensor, tensor.bytes - bytes, bytes, static_cast<std::byte*>(aligned));
    const bool whole = tensor.file_offset + tensor.bytes <= static_cast<int64_t>(half);
    CHECK(read.has_value() == whole);
    (whole ? good : bad) += 1;
    if (read) continue;
    CHECK(read.error().code == ErrorCode::kRuntime);
    CHECK(read.error().message.find("the file has become shorter") != std::string::npos);
    CHECK(read.error().message.find(tensor.name) != std::string::npos);
    CHECK(read.error().message.find("model.safetensors") != std::string::npos);
  }
  CHECK(good > 0);
  CHECK(bad > 0);
}
