// PageStore: pages of keys and values on disk, found by what they are made of. A directory that one process uses at a
// time:
//
//   FORMAT            "cpuinfer KV page store, version 1"
//   pages/<key>       a file for each page (page_file.h)
//
// There is no index that could be wrong: the names of the files are the index, and a file has its name only when its
// bytes are on the disk. When a page was last used is its file's modification time.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "engine/storage/page_file.h"
#include "engine/storage/page_key.h"

namespace cpuinfer::storage {

struct PageStoreOptions {
  std::filesystem::path directory;  ///< is made if it is not there
  int64_t size_bytes = 0;           ///< the most that all pages may take; 0: 95 % of what the disk has
  PageShape shape;                  ///< of the pages that are read and written; others of the directory only count
};

struct PageStoreStatistics {
  int64_t pages = 0, bytes = 0;  ///< in the store now
  int64_t read_pages = 0, read_bytes = 0, written_pages = 0, written_bytes = 0, evicted_pages = 0, damaged_pages = 0;
  double read_seconds = 0;   ///< in read(), from its beginning to its end
  double write_seconds = 0;  ///< while at least one page was being written
};

/// Reads and writes go to threads of its own, so that several are in flight. Used by one thread.
class PageStore {
 public:
  /// Opens or makes the directory, locks it and looks at what is there; removes what a killed process left unfinished,
  /// and the pages that have not been used for longest if there is more than size_bytes. Where nothing can be written
  /// (read-only, full) it warns and serves what is there.
  /// Errors: kUsage (size_bytes is below one page), kBadInput (the directory holds other things or another version),
  /// kPermission, kRuntime (another process has it, or the system says no).
  static Result<std::unique_ptr<PageStore>> open(const PageStoreOptions& options);
  /// Waits for what is being written.
  ~PageStore();
  PageStore(const PageStore&) = delete;
  PageStore& operator=(const PageStore&) = delete;

  const PageShape& shape() const { return options_.shape; }
  const std::filesystem::path& directory() const { return options_.directory; }
  bool contains(const PageKey& key);
  std::filesystem::path path(const PageKey& key) const;

  /// Reads pages that follow each other, several at a time; how many of them, from the first on, are there and good.
  /// One that is damaged is reported and removed, one that cannot be read is reported; either ends the count. The last
  /// use of the good ones is now.
  int64_t read(std::span<const PageContent> pages);

  /// Begins to write a page, which must not change until collect() names its tag. `before`: the keys of the pages
  /// before it, from the first on, whose last use is now too: a page is of use only with all of them, so it is evicted
  /// before they are. Makes room by evicting pages that have not been used for longest. Does nothing (the tag comes
  /// back all the same) if it is there or on its way, if the page before it is not, or if only pages that are pinned,
  /// or are before it, could make room. A disk that fails or is full is reported once, and then left alone.
  void write(PageContent page, std::span<const PageKey> before, int tag);
  /// Appends the tags of writes that have ended since the last call.
  void collect(std::vector<int>& tags);
  /// Until no write is in flight.
  void wait();

  /// Pinned pages are not evicted. Pins are counted; they are of this process, not of the directory.
  void pin(const PageKey& key);
  void unpin(const PageKey& key);
  /// A page turned out to be damaged: it is removed and counted. `reason` is part of the warning.
  void remove_damaged(const PageKey& key, const std::string& reason);

  /// Whether it takes no more pages, because its disk is read-only, full or failing.
  bool read_only() const;

  PageStoreStatistics statistics() const;

 private:
  using Order = std::list<PageKey>;
  struct Entry {
    int64_t bytes = 0;
    Order::iterator place;  // in order_
    bool ready = false;     // false: its file is being written
  };
  struct Job {
    PageContent page;
    int tag = 0;                   // of a write
    Result<void>* read = nullptr;  // of a read: where its outcome goes; nullptr: a write
    int64_t used_ns = 0;           // of a write: the file's time
  };

  explicit PageStore(const PageStoreOptions& options) : options_(options) {}
  Result<void> prepare_directory();
  void scan();
  void work();
  Result<void> start_threads();
  void do_write(Job& job, PageHeader& header);
  // With mutex_ held:
  void add(const PageKey& key, int64_t bytes, bool ready, Order::iterator where);
  bool is_ready(const PageKey& key);
  void drop(const PageKey& key, const std::string& reason);
  void touch(const PageKey& key);
  void erase(const PageKey& key);
  void mark_used(const PageKey& key);
  bool evict_one(const PageKey* newcomer);
  bool make_room(const PageKey* newcomer);
  void stop_writing(const std::string& why);

  PageStoreOptions options_;
  int64_t limit_bytes_ = 0;
  int lock_ = -1;  // the directory, locked
  mutable std::mutex mutex_;
  std::condition_variable work_, done_;
  std::deque<Job> jobs_;
  int writing_ = 0;  // writes that are queued or run
  int reading_ = 0;  // the same of reads
  bool ending_ = false, read_only_ = false, warned_of_pins_ = false;
  std::vector<int> ended_;  // tags
  std::unordered_map<PageKey, Entry, PageKeyHash> entries_;
  std::unordered_map<PageKey, int, PageKeyHash> pins_;
  Order order_;  // the least recently used first
  PageStoreStatistics statistics_;
  std::chrono::steady_clock::time_point writing_since_;
  int64_t last_use_ns_ = 0;  // of the system's clock; every use gets a later time
  std::vector<std::thread> threads_;
};

}  // namespace cpuinfer::storage
