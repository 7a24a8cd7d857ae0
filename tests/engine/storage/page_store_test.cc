#include "engine/storage/page_store.h"

#include <doctest/doctest.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "base/format.h"
#include "base/log.h"
#include "tests/engine/checkpoint/temporary_directory.h"

using namespace cpuinfer;
using namespace cpuinfer::storage;
namespace fs = std::filesystem;

namespace {

constexpr PageShape kShape = {.layers = 3, .pieces = 2, .piece_bytes = 8192, .page_tokens = 4};

// A directory that is removed at the end, and the warnings meanwhile.
class Fixture {
 public:
  Fixture() {
    set_log_sink([this](LogLevel level, std::string_view text) {
      if (level == LogLevel::kWarn) warnings += std::string(text) + "\n";
    });
  }
  ~Fixture() { set_log_sink(nullptr); }
  fs::path store() const { return path() / "store"; }
  fs::path path() const { return directory_.path(); }
  std::unique_ptr<PageStore> open(int64_t pages = 0) const {
    auto opened = PageStore::open({store(), pages * kShape.file_bytes(), kShape});
    REQUIRE_MESSAGE(opened, (opened ? "" : opened.error().message));
    return std::move(*opened);
  }
  std::string error() const {
    auto opened = PageStore::open({store(), 0, kShape});
    return opened ? "" : opened.error().message;
  }

  std::string warnings;

 private:
  checkpoint::TemporaryDirectory directory_;
};

// A page with its memory.
struct Page {
  explicit Page(int number, bool filled = true) {
    content.tokens = {number, number + 1, number + 2};
    content.key = child_key(root_key({}), content.tokens);
    for (int i = 0; i < kShape.layers * kShape.pieces; ++i) {
      auto* const piece = static_cast<std::byte*>(std::aligned_alloc(4096, kShape.piece_bytes));
      for (int64_t b = 0; b < kShape.piece_bytes; ++b)
        piece[b] = filled ? static_cast<std::byte>(number * 31 + i * 7 + b % 251) : std::byte{0xee};
      content.pieces.push_back(piece);
    }
  }
  ~Page() {
    for (std::byte* piece : content.pieces) std::free(piece);
  }
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;
  bool same(const Page& other) const {
    for (size_t i = 0; i < content.pieces.size(); ++i)
      if (std::memcmp(content.pieces[i], other.content.pieces[i], kShape.piece_bytes) != 0) return false;
    return true;
  }

  PageContent content;
};

void put(PageStore& store, int number) {
  const Page page(number);
  store.write(page.content, {}, number);
  store.wait();
}

bool has(PageStore& store, int number) { return store.contains(Page(number).content.key); }

// Reads one page; whether it came back as it was written.
bool get(PageStore& store, int number) {
  const Page expected(number);
  Page page(number, false);
  return store.read({&page.content, 1}) == 1 && page.same(expected);
}

void corrupt(const fs::path& file, int64_t offset) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(offset);
  const char byte = static_cast<char>(stream.get());
  stream.seekp(offset);
  stream.put(static_cast<char>(byte ^ 1));
}

// A file system of so many bytes at `path`, if this user may mount one.
class SmallDisk {
 public:
  SmallDisk(const fs::path& path, int64_t bytes) : path_(path) {
    fs::create_directories(path);
    const std::string options = format("size={},mode=700", bytes);
    mounted_ = ::mount("cpuinfer_test", path.c_str(), "tmpfs", 0, options.c_str()) == 0;
    if (!mounted_) MESSAGE("not run: cannot mount a small file system: " << std::strerror(errno));
  }
  ~SmallDisk() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }
  bool make_read_only() { return ::mount("", path_.c_str(), "", MS_REMOUNT | MS_RDONLY, nullptr) == 0; }

 private:
  fs::path path_;
  bool mounted_;
};

}  // namespace

TEST_CASE("a key names all tokens from the first") {
  const std::vector<TokenId> one = {1, 2}, other = {1, 3};
  const PageKey root = root_key({});
  CHECK(child_key(root, one) == child_key(root, one));
  CHECK(child_key(root, one) != child_key(root, other));
  CHECK(child_key(child_key(root, one), other) != child_key(child_key(root, other), other));
  const std::byte identity[] = {std::byte{1}};
  CHECK(root_key(identity) != root);
  // BLAKE2b-256 of nothing, as everybody computes it.
  CHECK(root.hex() == "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8");
}

TEST_CASE("pages come back as they were written, also by the next process") {
  Fixture fixture;
  {
    const auto store = fixture.open();
    put(*store, 1);
    put(*store, 2);
    std::vector<int> tags;
    store->collect(tags);
    CHECK(tags == std::vector<int>{1, 2});
    CHECK(get(*store, 1));
    CHECK(store->statistics().bytes == 2 * kShape.file_bytes());
  }
  const auto store = fixture.open();
  CHECK(get(*store, 2));
  CHECK(get(*store, 1));
  CHECK_FALSE(has(*store, 3));
  CHECK_FALSE(get(*store, 3));
  CHECK(fixture.warnings.empty());
}

TEST_CASE("of several pages those before the first missing one count") {
  Fixture fixture;
  const auto store = fixture.open();
  put(*store, 1);
  put(*store, 3);
  Page pages[] = {Page(1, false), Page(2, false), Page(3, false)};
  const std::vector<PageContent> contents = {pages[0].content, pages[1].content, pages[2].content};
  CHECK(store->read(contents) == 1);
}

TEST_CASE("a damaged page is reported, dropped and never served") {
  const auto damage = [](const std::function<void(const fs::path&)>& harm, const char* expected) {
    Fixture fixture;
    fs::path file;
    {
      const auto store = fixture.open();
      put(*store, 1);
      file = store->path(Page(1).content.key);
    }
    harm(file);
    const auto store = fixture.open();
    CHECK_FALSE(get(*store, 1));
    CHECK_MESSAGE(fixture.warnings.find(expected) != std::string::npos, fixture.warnings);
    CHECK(fixture.warnings.find("will be computed again") != std::string::npos);
    CHECK_FALSE(fs::exists(file));
    CHECK(store->statistics().damaged_pages == 1);
    put(*store, 1);
    CHECK(get(*store, 1));
  };
  const int64_t header = kShape.header_bytes();
  damage([&](const fs::path& file) { corrupt(file, header + 3 * kShape.piece_bytes); }, "layer 1 is damaged");
  damage([&](const fs::path& file) { corrupt(file, header - 1); }, "the header is damaged");
  damage([&](const fs::path& file) { corrupt(file, 3); }, "is no page of a KV store");
  damage([&](const fs::path& file) { corrupt(file, 8); }, "is of layout version 0, expected 1");
  damage([&](const fs::path& file) { fs::resize_file(file, header + 5); }, "bytes long, expected");
  damage([&](const fs::path& file) { fs::resize_file(file, 0); }, "is 0 bytes long, expected");
  // A page under another's name: its key says so.
  damage(
      [&](const fs::path& file) {
        auto other = PageStore::open({file.parent_path().parent_path().parent_path() / "other", 0, kShape});
        REQUIRE(other);
        PageStore* const store = other->get();
        put(*store, 2);
        fs::copy_file(store->path(Page(2).content.key), file, fs::copy_options::overwrite_existing);
      },
      "holds the page");
}

TEST_CASE("what a killed process left unfinished is removed") {
  Fixture fixture;
  fixture.open();
  const fs::path left = fixture.store() / "pages" / (Page(1).content.key.hex() + kTemporarySuffix);
  std::ofstream(left) << "half a page";
  const auto store = fixture.open();
  CHECK_FALSE(fs::exists(left));
  CHECK(store->statistics().pages == 0);
}

TEST_CASE("pages that have not been used for longest go first, pinned ones stay") {
  Fixture fixture;
  const auto store = fixture.open(3);
  for (const int number : {1, 2, 3}) put(*store, number);
  CHECK(get(*store, 1));
  put(*store, 4);
  CHECK(has(*store, 1));
  CHECK_FALSE(has(*store, 2));
  store->pin(Page(3).content.key);
  put(*store, 5);  // instead of 1, since 3 is pinned
  CHECK(has(*store, 3));
  CHECK_FALSE(has(*store, 1));
  for (const int number : {4, 5}) store->pin(Page(number).content.key);
  put(*store, 6);
  put(*store, 7);
  CHECK_FALSE(has(*store, 6));
  CHECK(fixture.warnings.find("of pages that are in use") != std::string::npos);
  CHECK(fixture.warnings.find('\n') == fixture.warnings.size() - 1);  // said once
  store->unpin(Page(4).content.key);
  put(*store, 6);
  CHECK(has(*store, 6));
  CHECK(store->statistics().evicted_pages == 3);
}

TEST_CASE("a store that is opened with a smaller size shrinks to it") {
  Fixture fixture;
  for (const int number : {1, 2, 3}) put(*fixture.open(), number);
  const auto store = fixture.open(2);
  CHECK_FALSE(has(*store, 1));
  CHECK(has(*store, 3));
}

TEST_CASE("directories that are no store of this version, or in use, are refused") {
  Fixture fixture;
  {
    const auto store = fixture.open();
    CHECK(fixture.error().find("another process uses this KV store") != std::string::npos);
  }
  std::ofstream(fixture.store() / "FORMAT") << "cpuinfer KV page store, version 7\n";
  CHECK(fixture.error().find("another version or no KV store") != std::string::npos);
  fs::remove_all(fixture.store());
  fs::create_directories(fixture.store());
  std::ofstream(fixture.store() / "letter.txt") << "dear";
  CHECK(fixture.error().find("is not empty and no KV store") != std::string::npos);
  fs::remove_all(fixture.store());
  std::ofstream(fixture.store()) << "a file";
  CHECK(fixture.error().find("cannot make the directory of the KV store") != std::string::npos);
  auto small = PageStore::open({fixture.path() / "small", kShape.file_bytes() - 1, kShape});
  REQUIRE_FALSE(small);
  CHECK(small.error().code == ErrorCode::kUsage);
  CHECK(small.error().message.find("one page of 4 tokens of this model takes") != std::string::npos);
}

TEST_CASE("a full disk makes room by eviction, and stops writing when that does not help") {
  Fixture fixture;
  SmallDisk disk(fixture.store(), 3 * kShape.file_bytes() + 16 * 1024);
  if (!disk.mounted()) return;
  const auto store = fixture.open(100);  // more than the disk has
  for (const int number : {1, 2, 3, 4}) put(*store, number);
  CHECK_FALSE(has(*store, 1));
  CHECK(get(*store, 4));
  CHECK(fixture.warnings.empty());
  for (const int number : {2, 3, 4}) store->pin(Page(number).content.key);
  put(*store, 5);
  CHECK(fixture.warnings.find("the KV store takes no more pages") != std::string::npos);
  CHECK(get(*store, 4));
}

TEST_CASE("a read-only disk serves what it has") {
  Fixture fixture;
  SmallDisk disk(fixture.store(), 16 * kShape.file_bytes());
  if (!disk.mounted()) return;
  put(*fixture.open(), 1);
  REQUIRE(disk.make_read_only());
  const auto store = fixture.open();
  CHECK(fixture.warnings.find("cannot be written to") != std::string::npos);
  CHECK(get(*store, 1));
  put(*store, 2);
  CHECK_FALSE(has(*store, 2));
}

TEST_CASE("one page written twice at a time is written once") {
  Fixture fixture;
  const auto store = fixture.open();
  for (int round = 0; round < 50; ++round) {
    const Page first(100 + round), second(100 + round);
    store->write(first.content, {}, 1);
    store->write(second.content, {}, 2);
    store->wait();
    CHECK(get(*store, 100 + round));
  }
  std::vector<int> tags;
  store->collect(tags);
  CHECK(tags.size() == 100);
  CHECK(store->statistics().written_pages == 50);
  CHECK(fixture.warnings.empty());
}

TEST_CASE("of a chain that does not fit the beginning is kept, before and after a restart") {
  Fixture fixture;
  std::vector<PageKey> chain;
  const auto write_chain = [&](PageStore& store, int first, int count) {
    chain.clear();
    for (int number = first; number < first + count; ++number) {
      const Page page(number);
      store.write(page.content, chain, number);
      store.wait();
      chain.push_back(page.content.key);
    }
  };
  {
    const auto store = fixture.open(4);
    write_chain(*store, 1, 8);
    for (const int number : {1, 2, 3, 4}) CHECK(has(*store, number));
    for (const int number : {5, 6, 7, 8}) CHECK_FALSE(has(*store, number));
    CHECK(fixture.warnings.find("a larger --kv-store-size would keep them") != std::string::npos);
  }
  {
    // Another text: the end of the older one goes first.
    const auto store = fixture.open(4);
    write_chain(*store, 20, 2);
    for (const int number : {1, 2, 20, 21}) CHECK(has(*store, number));
    CHECK_FALSE(has(*store, 3));
  }
  const auto store = fixture.open(3);
  for (const int number : {1, 20, 21}) CHECK(has(*store, number));
}

TEST_CASE("what people ask is for their eyes, and others who could plant pages are named") {
  Fixture fixture;
  {
    const auto store = fixture.open();
    put(*store, 1);
    struct stat status;
    REQUIRE(::stat(store->path(Page(1).content.key).c_str(), &status) == 0);
    CHECK((status.st_mode & 0777) == 0600);
    REQUIRE(::stat(fixture.store().c_str(), &status) == 0);
    CHECK((status.st_mode & 0777) == 0700);
  }
  fs::permissions(fixture.store(), fs::perms::all);
  fixture.open();
  CHECK(fixture.warnings.find("others may write to this KV store") != std::string::npos);
}

TEST_CASE("a new file system with its lost+found is a place for a store") {
  Fixture fixture;
  fs::create_directories(fixture.store() / "lost+found");
  put(*fixture.open(), 1);
  CHECK(has(*fixture.open(), 1));
}

TEST_CASE("a page that cannot be read for another reason than damage stays") {
  Fixture fixture;
  const auto store = fixture.open();
  put(*store, 1);
  rlimit before;
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  rlimit none = before;
  none.rlim_cur = 3;
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  const bool read = get(*store, 1);
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
  CHECK_FALSE(read);
  CHECK(fixture.warnings.find("cannot be read, and is computed") != std::string::npos);
  CHECK(get(*store, 1));
}
