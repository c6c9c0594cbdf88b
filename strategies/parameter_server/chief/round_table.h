// RoundTable: who takes part in which synchronous round, and with which part of the batch.
//
// A round is one global batch, cut among the workers that are there when it begins. It ends when
// every one of them has said that its part stands in the servers, with the sums of its part. If one
// of them is lost before, the batch is cut anew among the others (the next attempt); servers drop
// the parts of an older attempt, so the batch counts once. Workers that come join the next round.
//
// With b backup workers a round ends when all but b of its parts are in: the first to come win, the
// others are dropped. It then does not wait for stragglers to ask, but keeps a part for each.
//
// Rounds are numbered from base + 1 through all epochs: the version that variables have afterwards.
//
// Not synchronised.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include <cohort/cluster/cluster_spec.h>

namespace cohort::ps {

// A data set of the job and an epoch of it.
struct EpochKey {
  int dataset = 0;
  std::int64_t epoch = 0;
  friend auto operator<=>(const EpochKey&, const EpochKey&) = default;
};

// The parts that a round came to have. Servers apply it by that with backup workers, and where
// there are copies (ModelSpec::elects).
struct RoundCommit {
  std::uint64_t round = 0;  // 0: none
  int attempt = 0;
  std::vector<int> winners;
  friend bool operator==(const RoundCommit&, const RoundCommit&) = default;
};

struct RoundPart {
  std::uint64_t round = 0;
  int attempt = 0;
  int part = 0;
  int parts = 1;
  EpochKey epoch;
  std::int64_t batch = 0;
  RoundCommit previous;  // of the round before
  friend bool operator==(const RoundPart&, const RoundPart&) = default;
};

struct RoundSums {
  double loss_sum = 0;
  double weight = 0;
  std::vector<double> metric_sums;

  void Add(const RoundSums& other);
};

// The sums of a whole round, and how servers are to apply it.
struct RoundTotal : RoundSums {
  RoundCommit commit;
};

class RoundTable {
 public:
  // The first round waits for all of `expected`.
  RoundTable(std::uint64_t base_round, std::set<TaskId> expected, int backup_workers = 0)
      : backup_(backup_workers), round_(base_round + 1), expected_(std::move(expected)) {}

  struct Epoch {
    std::int64_t first = 0;
    std::int64_t next = 0;  // batch
    std::int64_t end = 0;
    RoundSums sums;
  };
  // What a journal keeps, of a table between two rounds.
  struct Kept {
    std::map<EpochKey, Epoch> epochs;
    std::uint64_t round = 1;  // the next one
    std::uint64_t last_round = 0;
    RoundTotal last_total;
    std::int64_t superseded = 0;
    std::int64_t dropped = 0;
  };
  Kept Keep() const;
  RoundTable(Kept kept, int backup_workers);

  // Of an epoch that is over nobody asks any more.
  void Forget(const EpochKey& epoch) { epochs_.erase(epoch); }

  // Gives an epoch its batches [first, end), once.
  void OpenEpoch(const EpochKey& epoch, std::int64_t first_batch, std::int64_t end_batch);

  enum class Reply { kWait, kGo, kOver };
  // kGo: *part is this worker's; the same until it finishes. kOver: the epoch is.
  Reply Join(const TaskId& worker, const EpochKey& epoch, RoundPart* part);
  // kGo: the round is applied, *total has its sums: of the last one, or with backup workers, who
  // may have gone on since, of the last one that this worker's part counts in. kOver: superseded,
  // to join again.
  Reply Finish(const TaskId& worker, std::uint64_t round, int attempt, const RoundSums& sums,
               RoundTotal* total);
  // Lost, or done: rounds go on without it.
  void Leave(const TaskId& worker);

  // Whose part of the running round is missing; of the next one, who has not asked for it.
  std::vector<TaskId> awaited() const;
  // As between two rounds, with these workers to wait for, of whom nobody has asked yet; servers
  // have values of then, and are told of no round before.
  void Restart(std::set<TaskId> expected);
  // No round begins until it is let go again.
  void Hold(bool held);
  bool running() const { return running_; }
  std::int64_t next_batch(const EpochKey& epoch) const;
  const RoundTotal& last_total() const { return last_total_; }
  std::uint64_t last_round() const { return last_round_; }

  // Batches of the epoch that were applied.
  std::int64_t applied(const EpochKey& epoch) const;
  // What they came to.
  RoundSums sums(const EpochKey& epoch) const;
  std::int64_t superseded() const { return superseded_; }
  // Parts of applied rounds that were dropped.
  std::int64_t dropped() const { return dropped_; }

 private:
  struct Member {
    int part = 0;
    bool finished = false;
    RoundSums sums;
  };
  struct Left {
    int part = 0;
    RoundSums sums;
  };

  void FormIfComplete();
  void CutAnew();
  void NumberParts();
  void CompleteIfFinished();

  bool MayForm() const;
  std::size_t Finished() const;

  int backup_;
  std::map<EpochKey, Epoch> epochs_;
  std::uint64_t round_;  // the running one, or the next
  int attempt_ = 0;
  std::set<TaskId> expected_;          // whom the next round waits for
  std::map<TaskId, EpochKey> asking_;  // who wants to take part in it
  bool running_ = false;
  bool held_ = false;
  EpochKey epoch_;                    // of the running round
  std::map<TaskId, Member> members_;  // of the running round that are still there
  std::vector<Left> left_behind_;     // finished parts of members that have gone since
  int parts_ = 0;
  std::size_t needed_ = 0;  // of them
  std::uint64_t last_round_ = 0;
  RoundTotal last_total_;
  std::map<TaskId, RoundTotal> counted_;  // with backup workers: of the last with the worker's part
  std::int64_t superseded_ = 0;
  std::int64_t dropped_ = 0;
};

}  // namespace cohort::ps
