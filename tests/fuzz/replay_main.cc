// Runs a fuzz target without libFuzzer: every file of a corpus, then mutations of them, the same ones at every run.
//
//   NAME_replay CORPUS_DIRECTORY MUTATIONS SECONDS
//
// Stops after MUTATIONS mutated inputs or SECONDS, whichever is first. When an input crashes the target, or takes
// longer than 20 seconds, it is written to NAME_replay.crash in the current directory.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "base/format.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace {

namespace fs = std::filesystem;
using cpuinfer::format;
using Bytes = std::vector<uint8_t>;

constexpr size_t kMaxBytes = 1 << 16;
constexpr unsigned kSecondsPerInput = 20;

// For the signal handler, which may not allocate.
Bytes g_input;
std::string g_what;
std::string g_crash_file;

void say(const char* text, size_t size) {
  if (write(STDERR_FILENO, text, size) < 0) return;
}

void save_input() {
  say("crashed or hung on ", 19);
  say(g_what.data(), g_what.size());
  say(", saved as ", 11);
  say(g_crash_file.data(), g_crash_file.size());
  say("\n", 1);
  const int file = open(g_crash_file.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0644);
  if (file < 0) return;
  if (write(file, g_input.data(), g_input.size()) < 0) say("could not save it\n", 18);
  close(file);
}

void on_signal(int number) {
  save_input();
  signal(number, SIG_DFL);
  raise(number);
}

void run_one(Bytes input, std::string what) {
  g_input = std::move(input);
  g_what = std::move(what);
  alarm(kSecondsPerInput);
  // A copy of exactly this size, so that AddressSanitizer sees a read past the end.
  const Bytes exact(g_input);
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
  alarm(0);
}

/// Random numbers that are the same with every standard library, unlike std::uniform_int_distribution.
class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  size_t below(size_t bound) { return bound == 0 ? 0 : engine_() % bound; }

 private:
  std::mt19937 engine_;
};

/// One to four changes of the kinds that break parsers: of bits, of lengths, of structure, of numbers.
Bytes mutate(Bytes input, const std::vector<Bytes>& corpus, Random& random) {
  static constexpr uint64_t kNumbers[] = {
      0,          1,     0x7f,       0x80,       0xffff,     0x10000,   0x7fffffff,      0xffffffffu, 0x100000000ull,
      ~0ull >> 1, ~0ull, 1ull << 63, 1ull << 62, 1ull << 40, ~0ull - 7, (1ull << 61) + 1};
  static constexpr const char* kTokens[] = {"-1",
                                            "0",
                                            "1e999",
                                            "-0.0",
                                            "9223372036854775807",
                                            "18446744073709551616",
                                            "1.5",
                                            "null",
                                            "true",
                                            "[]",
                                            "{}",
                                            "[[",
                                            "\"\"",
                                            "\\u0000",
                                            "\\ud800",
                                            "\"\\",
                                            "\xff\xfe",
                                            "\xf4\x90\x80\x80",
                                            ",",
                                            ":",
                                            "}",
                                            "]"};
  const size_t changes = 1 + random.below(4);
  for (size_t change = 0; change < changes; ++change) {
    const size_t at = random.below(input.size() + 1);
    const size_t length = std::min(random.below(1 + random.below(64)) + 1, input.size() - at);
    const auto begin = input.begin() + static_cast<ptrdiff_t>(at);
    switch (random.below(9)) {
      case 0:
        if (at < input.size()) input[at] ^= static_cast<uint8_t>(1u << random.below(8));
        break;
      case 1:
        if (at < input.size()) input[at] = static_cast<uint8_t>(random.below(256));
        break;
      case 2: input.erase(begin, begin + static_cast<ptrdiff_t>(length)); break;
      case 3: {
        const Bytes copy(begin, begin + static_cast<ptrdiff_t>(length));
        input.insert(input.begin() + static_cast<ptrdiff_t>(random.below(input.size() + 1)), copy.begin(), copy.end());
        break;
      }
      case 4: input.resize(at); break;
      case 5: {  // a number, little-endian, over what is there
        const uint64_t number = kNumbers[random.below(std::size(kNumbers))];
        const size_t offset = random.below(4) == 0 ? 0 : at;  // headers start with their length
        std::memcpy(input.data() + offset, &number, std::min(sizeof(number), input.size() - offset));
        break;
      }
      case 6: {  // a token, in between or over a run of digits
        const char* const token = kTokens[random.below(std::size(kTokens))];
        const auto is_digit = [](uint8_t byte) { return byte >= '0' && byte <= '9'; };
        const auto first = std::find_if(begin, input.end(), is_digit);
        const auto last = std::find_if_not(first, input.end(), is_digit);
        const auto place = random.below(2) == 0 ? begin : input.erase(first, last);
        input.insert(place, token, token + std::strlen(token));
        break;
      }
      case 7: {  // the rest of another file
        const Bytes& other = corpus[random.below(corpus.size())];
        const size_t from = random.below(other.size() + 1);
        input.resize(at);
        input.insert(input.end(), other.begin() + static_cast<ptrdiff_t>(from), other.end());
        break;
      }
      case 8: {  // one bracket many times: depth
        const Bytes deep(1 + random.below(2000), "[{(\"\\"[random.below(5)]);
        input.insert(begin, deep.begin(), deep.end());
        break;
      }
    }
    if (input.size() > kMaxBytes) input.resize(kMaxBytes);
  }
  return input;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    fmt::print(stderr, "usage: {} CORPUS_DIRECTORY MUTATIONS SECONDS\n", argv[0]);
    return 2;
  }
  const fs::path directory = argv[1];
  const long mutations = std::strtol(argv[2], nullptr, 10);
  const long seconds = std::strtol(argv[3], nullptr, 10);
  g_crash_file = fs::path(argv[0]).filename().string() + ".crash";

  std::error_code error;
  std::vector<fs::path> files;
  for (fs::recursive_directory_iterator it(directory, error), end; !error && it != end; it.increment(error))
    if (it->is_regular_file()) files.push_back(it->path());
  if (error || files.empty()) {
    fmt::print(stderr, "{}: no corpus there: a fuzz target needs at least one file\n", directory.string());
    return 1;
  }
  std::sort(files.begin(), files.end());

  for (int number : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGALRM}) signal(number, on_signal);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(save_input);

  const auto start = std::chrono::steady_clock::now();
  std::vector<Bytes> corpus;
  for (const fs::path& file : files) {
    std::ifstream stream(file, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
    run_one(corpus.back(), file.string());
  }
  run_one({}, "the empty input");

  Random random(20240229);
  long done = 0;
  for (; done < mutations && std::chrono::steady_clock::now() - start < std::chrono::seconds(seconds); ++done) {
    const size_t parent = random.below(corpus.size());
    run_one(mutate(corpus[parent], corpus, random), format("mutation {} of {}", done, files[parent].string()));
  }
  fmt::print("{} corpus files and {} mutations without a crash\n", corpus.size(), done);
  return 0;
}
