// SplitQueue: the examples of one epoch, handed out in pieces, each until somebody has finished it.
//
// A worker holds one split at a time; asking again without having finished it gives the same one,
// so a repeated request does no harm. What a lost worker held is handed out again, before anything
// new. The epoch is over when every split was finished, by whomever.
//
// Not synchronised.

#pragma once

#include <cstdint>
#include <deque>
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
  // Examples [begin, end), `size` of them (the last fewer) per split.
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
  };
  Kept Keep() const;
  explicit SplitQueue(const Kept& kept);

  // Nothing: all are handed out (over() tells whether that was all).
  // `returned_only`: nothing that was not handed out before.
  std::optional<Split> Next(const TaskId& worker, bool returned_only = false);
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
  bool over() const { return seen_ == end_ - begin_; }
  std::int64_t seen() const { return seen_; }  // examples of finished splits
  std::int64_t splits() const;
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
};

// How many batches make a split: at least ten splits per worker where the epoch has as many
// batches, and not more than 64 batches.
std::int64_t BatchesPerSplit(std::int64_t batches, int workers);

}  // namespace cohort::ps
