// Keys and values of running sequences that are on disk: attention gets them layer by layer, a few superblocks at a
// time, in memory that it shares with those before. Exact: every token of the context is read for every step.
#pragma once

#include "engine/model/kv_cache.h"
#include "numa/team.h"

namespace cpuinfer::model {

/// A superblock of a sequence of the batch that is not in the cache.
struct ColdSuperblock {
  int sequence = 0;  ///< of Batch::sequences
  int superblock = 0;
};

/// Brings the cold superblocks of a step (Batch::cold, in this order) into memory, in rounds of
/// superblocks_per_round(): the same rounds for every layer, layer after layer. Reading runs ahead of the rounds that
/// are asked for.
///
/// When something cannot be read, or is damaged, all rounds from then on hold anything and are there at once: a step
/// ends as it would have, with numbers that mean nothing, and whoever ordered it asks for the error.
class ColdPages {
 public:
  virtual ~ColdPages() = default;

  virtual int superblocks_per_round() const = 0;
  /// A cache of one layer, whose pages rounds are read into. Superblock i of a round lies in the pages
  /// first_page(..) + 4 i ..; which of the stage's stripes that is depends on i alone.
  virtual KvCache& stage() = 0;
  virtual int first_page(int layer, int round) const = 0;

  /// One worker: returns when the bytes of a round are in memory.
  virtual void wait(int layer, int round) = 0;
  /// Every worker, when wait() is over: compares its share with the checksums.
  virtual void verify(int layer, int round, const numa::Worker& worker) = 0;
  /// One worker, when no other needs the round any more: its memory may be read into.
  virtual void release(int layer, int round) = 0;
};

}  // namespace cpuinfer::model
