// RowRounds: pushes of gradients of rows that are one update, on one server.
//
// In a round each of its parts (a worker's share of a batch) pushes once, in as many frames as it
// takes; the last one says so, and a part without rows is that one alone. The update is the sum
// over all parts, in the order of the parts, whatever the order of arrival, divided by the sum of
// their weights; each row is updated once.
//
// A round is applied when all its parts are there and somebody needs it: reads after it, or pushes
// to a later one. Until then a newer attempt of it, cut for other workers, takes its place.
//
// Processes that train in step are never two rounds apart, but one apart they are: who looks up
// nothing here awaits nothing here. So the next round gathers its parts while some of this one are
// under way; it is applied after it.
//
// With backup workers the scheduler says which parts a round has (Elect); the others are dropped,
// whether they have come or not, and without its word no round is applied.
//
// A round is applied under no lock of all tables: meanwhile frames of the next one are taken, and
// who waits for it helps, a table at a time. All that its tables are to get is put together before
// the first of them changes; where memory ends (std::bad_alloc) until then the round is as before,
// and whoever needs it begins again. Where it ends later, some rows of a table have their update
// and others not: nothing could tell which, so that is the answer to all that comes from then on,
// until Begin.
//
// Thread rules: all methods from any thread.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include <cohort/parameter_server.pb.h>
#include "parameter_server/rows/row_table.h"

namespace cohort::ps {

class RowRounds {
 public:
  // A frame's gradients for a table, each id once.
  struct Rows {
    std::size_t table = 0;
    std::vector<std::uint64_t> ids;
    std::vector<std::uint32_t> counts;
    std::vector<float> values;  // [ids, dim]
  };

  // Before the other calls; again, to forget all rounds. `tables` must outlive this. `elects`:
  // with backup workers.
  void Begin(std::span<const std::unique_ptr<RowTable>> tables, bool elects);

  // Takes a frame of a part, which has rows of some tables, none of them empty, or no rows; all of
  // it, or nothing. One of an attempt, or a round, that is over is dropped: OK. Aborted: a
  // round is begun while parts of one that is not just before it are missing. InvalidArgument: not
  // as the others of the round say. Else why an earlier round could not be applied; where another
  // thread is at it, later calls say so.
  Status Add(const Round& round, double weight, std::int64_t step, bool last,
             std::vector<Rows> rows);

  // The parts that the round of `commit` has. Every worker brings it; the first counts, and of a
  // round that is over none does. FailedPrecondition: not all of them are there.
  Status Elect(const Commit& commit);

  // Waits until every round up to `round` that was begun is applied. False: not yet, at the
  // deadline. An error of the update is returned from then on.
  Result<bool> WaitApplied(std::uint64_t round, Deadline deadline);

  // Applies the round that is complete, if there is one.
  Status Settle();

  // For another server that gets the tables: the rounds that are not applied, all but what their
  // parts hold; and that. The other way round they take the place of those that there are.
  // InvalidArgument: there is no such round, part or frame, or it is not of the tables.
  void Tell(Rounds* rounds) const;
  Status Learn(const Rounds& rounds);
  Status TellPiece(const RoundPiece& asked, RoundPiece* piece) const;
  Status LearnPiece(const RoundPiece& piece);

  // How many parts are there of how many, for messages.
  std::string Describe() const;

 private:
  struct Part {
    std::vector<Rows> frames;
    double weight = 0;
    bool complete = false;
  };
  struct Open {
    std::uint32_t attempt = 0;
    std::int64_t step = 1;
    std::vector<Part> parts;
    bool elected = false;  // what parts it has has been said, where that is to be said
    bool complete() const;
  };
  // The round that is being applied.
  struct Taken {
    std::uint64_t round = 0;
    std::int64_t step = 1;
    float scale = 1.0F;
    bool ready = false;         // `sums` is what the tables are to get
    std::vector<Rows> sums;     // of each table, in the order of the parts
    std::size_t next = 0;       // that no thread has begun
    std::size_t under_way = 0;  // threads that are at one
  };
  using Lock = std::unique_lock<std::mutex>;
  // Under the mutex, as all below. What takes the lock may let go of it meanwhile.
  bool complete(std::uint64_t round) const;  // are all that are open up to it?
  // The last round whose parts nobody adds to any more.
  std::uint64_t decided() const { return taken_.round > 0 ? taken_.round : applied_; }
  // The frame that a piece is; null: there is none.
  const Rows* Find(const RoundPiece& piece) const;
  // Rounds up to this one, as far as they are complete. `wait`: until they are applied; else until
  // none is left that nobody has taken.
  Status ApplyComplete(Lock& lock, std::uint64_t round, bool wait);
  void Take(Lock& lock);  // the first that is open
  bool CanHelp() const;
  void Help(Lock& lock);  // to apply what is taken, as long as there are tables to begin
  void AwaitNoneTaken(Lock& lock) const;
  void SumUp(const Open& open, Taken& taken) const;
  Status ApplyTo(std::size_t table, const Taken& taken) const;

  std::span<const std::unique_ptr<RowTable>> tables_;
  bool elects_ = false;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  // Below: under `mutex_`.
  std::uint64_t applied_ = 0;           // the last round that was
  std::map<std::uint64_t, Open> open_;  // by round
  Taken taken_;                         // round 0: none
  Status failed_;
  Status out_of_memory_;  // to be said when there is no memory for words
};

}  // namespace cohort::ps
