// SplitQueue: the examples of one epoch, handed out in pieces, each until somebody has finished it.
//
// A worker holds one split at a time; asking again without having finished it gives the same one,
// so a repeated request does no harm. Splits may be of any size. What a lost worker held is handed
// out again, before anything new. The epoch is over when every split was finished, by whomever.
//
// Not synchronised.

#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <vector>

#include <cohort/cluster/cluster_spec.h>

namespace cohort::ps {

// A range of the epoch's order. Ids are from 1.
struct Split {
  std::int64_t id = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  friend bool operator==(const Split&, const Split&) = default;
};

class SplitQueue {
 public:
  static constexpr std::int64_t kAny = std::numeric_limits<std::int64_t>::max();

  // Examples [begin, end), `size` of them at most (the last fewer) per split.
  SplitQueue(std::int64_t begin, std::int64_t end, std::int64_t size);

  // What a journal keeps: that nobody holds a split any more is all that a queue made of it differs
  // in.
  struct Kept {
    std::int64_t begin = 0;
    std::int64_t end = 0;
    std::int64_t size = 1;
    std::int64_t next = 0;
    std::vector<Split> returned;
    std::int64_t seen = 0;
    std::int64_t reissued = 0;
    std::int64_t splits = 0;
  };
  Kept Keep() const;
  explicit SplitQueue(const Kept& kept);

  // Nothing: all are handed out (over() tells whether that was all).
  // `most`: examples of a split that was not handed out before; 0: none of those.
  std::optional<Split> Next(const TaskId& worker, std::int64_t most = kAny);
  // Whether the worker held that split; ignored if not.
  bool Finish(const TaskId& worker, std::int64_t id);
  // What the worker held is free again.
  void Lost(const TaskId& worker);

  // Who has one, and has not finished it.
  std::vector<TaskId> holders() const;
  // Is everything before position() finished?
  bool idle() const { return held_.empty() && returned_.empty(); }
  bool returned() const { return !returned_.empty(); }  // something that lost workers held
  std::int64_t position() const { return next_; }  // of the first example that was never handed out
  std::int64_t left() const { return end_ - next_; }  // that were never handed out
  std::int64_t held() const;                          // examples of splits that workers have
  bool over() const { return seen_ == end_ - begin_; }
  std::int64_t seen() const { return seen_; }      // examples of finished splits
  std::int64_t splits() const { return splits_; }  // so far, each counted once
  std::int64_t reissued() const { return reissued_; }

 private:
  std::int64_t begin_;
  std::int64_t end_;
  std::int64_t size_;
  std::int64_t next_;
  std::deque<Split> returned_;
  std::map<TaskId, Split> held_;
  std::int64_t seen_ = 0;
  std::int64_t reissued_ = 0;
  std::int64_t splits_ = 0;
};

// How many batches make a split: at least ten splits per worker where the epoch has as many
// batches, and not more than 64 batches.
std::int64_t BatchesPerSplit(std::int64_t batches, int workers);
// The same for a split where all will wait for each other after `left` more batches, some of which
// are not handed out: half of a worker's share, so that the last ones are single batches, and who
// is at one is soon done (guided self-scheduling, Polychronopoulos and Kuck 1987). At least 1.
std::int64_t BatchesBeforeAStop(std::int64_t left, int workers);

}  // namespace cohort::ps
