// Decoding allocates nothing and opens nothing: every call of this program that does, in any library, is counted. A
// sanitizer has an allocator of its own; then operator new alone is counted.
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <new>
#include <optional>

#include "tests/engine/load/packed_data.h"
#include "tests/engine/run/synthetic_engine.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CPUINFER_COUNTS_NEW_ONLY 1
#else
#define CPUINFER_COUNTS_NEW_ONLY 0
#endif

namespace {

std::atomic<bool> armed = false;
std::atomic<int64_t> allocations = 0;  // while armed
std::atomic<int64_t> mappings = 0;
std::atomic<int64_t> openings = 0;

void note(std::atomic<int64_t>& counter) {
  if (armed.load(std::memory_order_relaxed)) ++counter;
}

// Counts until the end of the block.
struct Watched {
  Watched() {
    allocations = mappings = openings = 0;
    armed = true;
  }
  ~Watched() { armed = false; }
};

}  // namespace

#if CPUINFER_COUNTS_NEW_ONLY

namespace {
void* allocate(std::size_t bytes, std::size_t alignment) {
  note(allocations);
  const std::size_t size = bytes == 0 ? 1 : bytes;
  void* const memory = alignment <= alignof(std::max_align_t)
                           ? std::malloc(size)
                           : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
}  // namespace

// The other forms of new and delete call these, but for the sanitizers' own form without exceptions (std::stable_sort).
void* operator new(std::size_t bytes) { return allocate(bytes, 0); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  note(allocations);
  return std::malloc(bytes == 0 ? 1 : bytes);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

#else

// In place of the C library's, for all libraries of the program. Its own allocator goes by these names, too; system
// calls need no library. operator new calls malloc or aligned_alloc.
extern "C" {

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t bytes) noexcept {
  note(allocations);
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) noexcept {
  note(allocations);
  return __libc_calloc(count, bytes);
}
void* realloc(void* memory, size_t bytes) noexcept {
  note(allocations);
  return __libc_realloc(memory, bytes);
}
void* memalign(size_t alignment, size_t bytes) noexcept {
  note(allocations);
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  note(allocations);
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** memory, size_t alignment, size_t bytes) noexcept {
  note(allocations);
  *memory = __libc_memalign(alignment, bytes);
  return *memory == nullptr ? ENOMEM : 0;
}

void* mmap(void* address, size_t bytes, int protection, int flags, int descriptor, off_t offset) noexcept {
  note(mappings);
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, bytes, protection, flags, descriptor, offset));
}
void* mmap64(void* address, size_t bytes, int protection, int flags, int descriptor, off64_t offset) noexcept {
  return mmap(address, bytes, protection, flags, descriptor, offset);
}

// The mode is read whether it was given or not, as the kernel does.
#define CPUINFER_OPENS(name, parameters, directory)                             \
  int name parameters {                                                         \
    note(openings);                                                             \
    va_list arguments;                                                          \
    va_start(arguments, flags);                                                 \
    const mode_t mode = va_arg(arguments, mode_t);                              \
    va_end(arguments);                                                          \
    return static_cast<int>(syscall(SYS_openat, directory, path, flags, mode)); \
  }
CPUINFER_OPENS(open, (const char* path, int flags, ...), AT_FDCWD)
CPUINFER_OPENS(open64, (const char* path, int flags, ...), AT_FDCWD)
CPUINFER_OPENS(openat, (int directory, const char* path, int flags, ...), directory)
CPUINFER_OPENS(openat64, (int directory, const char* path, int flags, ...), directory)
#undef CPUINFER_OPENS

}  // extern "C"

#endif

using namespace cpuinfer;
using namespace cpuinfer::run;

namespace {

#if CPUINFER_COUNTS_NEW_ONLY
constexpr int64_t kDepth = 16 * 1024 - 50;  // sanitizers are slow
#else
constexpr int64_t kDepth = 256 * 1024 + 200;  // a page ends 56 tokens later
#endif
constexpr int kWarmUp = 10;
constexpr int kSteps = 100;

TokenId next_token(int step, int sequence) { return static_cast<TokenId>((step * 31 + sequence * 17) % 199); }

}  // namespace

TEST_CASE("the counters count") {
  {
    const Watched watched;
    std::vector<int> numbers(100);
    numbers[99] = 1;
  }
  CHECK(allocations.load() == 1);
  {
    const Watched watched;
    struct alignas(128) Line {
      char bytes[128];
    };
    std::vector<Line> lines(3);
    lines[2].bytes[0] = 1;
  }
  CHECK(allocations.load() == 1);
  std::vector<int> numbers(100);  // not armed
  CHECK(allocations.load() == 1);
#if CPUINFER_COUNTS_NEW_ONLY
  MESSAGE("a sanitizer has the allocator: operator new is counted, malloc, mmap and open are not");
#else
  // Volatile: the compiler knows malloc and would leave it out.
  void* volatile memory[6] = {};
  {
    const Watched watched;
    memory[0] = malloc(1);
    memory[1] = calloc(1, 1);
    memory[2] = realloc(nullptr, 1);
    memory[3] = aligned_alloc(64, 64);
    void* aligned = nullptr;
    memory[4] = posix_memalign(&aligned, 64, 64) == 0 ? aligned : nullptr;
    memory[5] = strdup("text");  // inside of the C library
  }
  for (void* const one : memory) free(one);
  CHECK(allocations.load() == 6);
  CHECK(mappings.load() == 0);
  CHECK(openings.load() == 0);

  int descriptors[2] = {-1, -1};
  void* mapping = nullptr;
  {
    const Watched watched;
    descriptors[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    descriptors[1] = openat(AT_FDCWD, "/dev/zero", O_RDWR | O_CLOEXEC);
    mapping = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  CHECK(allocations.load() == 0);
  CHECK(openings.load() == 2);
  CHECK(mappings.load() == 1);
  REQUIRE(mapping != MAP_FAILED);
  munmap(mapping, 4096);
  for (const int descriptor : descriptors) {
    CHECK(descriptor >= 0);
    close(descriptor);
  }
  {
    const Watched watched;
    std::FILE* const file = std::fopen("/dev/null", "r");  // its own opening is hidden, its memory is not
    if (file != nullptr) std::fclose(file);
  }
  CHECK(allocations.load() >= 1);
#endif
}

TEST_CASE("100 decode steps at 256k tokens of context allocate and open nothing, at a page's end neither") {
#if CPUINFER_COUNTS_NEW_ONLY
  MESSAGE("at ", kDepth, " tokens: a sanitizer is too slow for 256k");
#endif
  for (const int threads : {1, 2}) {
    for (const int batch : {1, 4}) {
      CAPTURE(threads);
      CAPTURE(batch);
      EngineOptions options;
      options.synthetic = small_model(512 * 1024);
      options.context_tokens = kDepth + kWarmUp + kSteps;
      options.sequences = batch;
      options.threads = threads;
      const auto engine = loaded_engine(options);
      std::vector<Sequence> sequences;
      for (int s = 0; s < batch; ++s) {
        auto sequence = engine->start_sequence(options.context_tokens);
        REQUIRE(sequence);
        REQUIRE(engine->fabricate_context(*sequence, kDepth));
        sequences.push_back(std::move(*sequence));
      }
      std::vector<StepRequest> requests(batch);
      std::vector<TokenId> tokens(batch);
      std::optional<Watched> watched;
      bool worked = true;
      float sum = 0;
      for (int step = 0; step < kWarmUp + kSteps; ++step) {
        if (step == kWarmUp) watched.emplace();
        for (int s = 0; s < batch; ++s) {
          tokens[s] = next_token(step, s);
          requests[s] = {&sequences[s], {&tokens[s], 1}, LogitRows::kLast};
        }
        const auto logits = engine->step(requests);
        worked = worked && logits;
        if (logits) sum += (*logits)[batch - 1][0][0];
      }
      watched.reset();
      CHECK(allocations.load() == 0);
      CHECK(mappings.load() == 0);
      CHECK(openings.load() == 0);
      CHECK(worked);
      CHECK(std::isfinite(sum));
      CHECK(sequences[0].length() == kDepth + kWarmUp + kSteps);
    }
  }
}

TEST_CASE("decoding by append allocates and opens nothing") {
  EngineOptions options;
  options.synthetic = small_model(4096);
  options.context_tokens = 1024;
  const auto engine = loaded_engine(options);
  auto sequence = engine->start_sequence(1024);
  REQUIRE(sequence);
  float sum = 0;
  AppendOptions append;
  append.logits = [&sum](int64_t, std::span<const std::span<const float>> logits) { sum += logits[0][0]; };
  std::optional<Watched> watched;
  bool worked = true;
  for (int step = 0; step < kWarmUp + 300; ++step) {
    if (step == kWarmUp) watched.emplace();
    const TokenId token = next_token(step, 0);
    worked = worked && engine->append(*sequence, {&token, 1}, append);
  }
  watched.reset();
  CHECK(allocations.load() == 0);
  CHECK(mappings.load() == 0);
  CHECK(openings.load() == 0);
  CHECK(worked);
  CHECK(std::isfinite(sum));
}

TEST_CASE("steps that read weights from disk allocate and open nothing") {
  const SyntheticModel model = small_model(4096, 4);
  const load::PackedDirectory directory(to_json_text(model.config));
  for (const storage::IoBackend backend : {storage::IoBackend::kThreads, storage::IoBackend::kAuto}) {
    EngineOptions options;
    options.model = directory.path();
    options.context_tokens = 1024;
    options.stream_weights = true;
    options.stream_backend = backend;
    // With 4 KiB for an expert: enough for all else and some experts, not for all.
    const auto planned = Engine::prepare(options);
    REQUIRE(planned);
    options.memory_limit_bytes = ((*planned)->plan().total() - 300_KiB) / 15 * 16;
    const auto engine = loaded_engine(options);
    REQUIRE(engine->stream_plan().expert_slots > 0);
    auto sequence = engine->start_sequence(1024);
    REQUIRE(sequence);
    float sum = 0;
    AppendOptions append;
    append.logits = [&sum](int64_t, std::span<const std::span<const float>> logits) { sum += logits[0][0]; };
    std::vector<TokenId> prompt(100);
    for (int i = 0; i < 100; ++i) prompt[static_cast<size_t>(i)] = next_token(i, 1);
    std::optional<Watched> watched;
    bool worked = true;
    int64_t bytes = 0;
    for (int step = 0; step < kWarmUp + 100; ++step) {
      if (step == kWarmUp) {
        bytes = engine->stream_statistics().bytes;
        watched.emplace();
      }
      const TokenId token = next_token(step, 0);
      worked = worked && engine->append(*sequence, {&token, 1}, append);
      if (step == 50) worked = worked && engine->append(*sequence, prompt, append);
    }
    watched.reset();
    CHECK(allocations.load() == 0);
    CHECK(mappings.load() == 0);
    CHECK(openings.load() == 0);
    CHECK(worked);
    CHECK(std::isfinite(sum));
    CHECK(engine->stream_statistics().bytes > bytes);
  }
}
