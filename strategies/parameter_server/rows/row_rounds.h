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
// With backup workers the coordinator says which parts a round has (Elect); the others are dropped,
// whether they have come or not, and without its word no round is applied.
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
  // as the others of the round say. Else why an earlier round could not be applied.
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
  // Under the mutex, as all below.
  bool complete(std::uint64_t round) const;  // are all that are open up to it?
  // The frame that a piece is; null: there is none.
  const Rows* Find(const RoundPiece& piece) const;
  Status Apply();                             // the first that is open
  Status ApplyComplete(std::uint64_t round);  // those up to it, as far as they are

  std::span<const std::unique_ptr<RowTable>> tables_;
  bool elects_ = false;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Below: under `mutex_`.
  std::uint64_t applied_ = 0;           // the last round that was
  std::map<std::uint64_t, Open> open_;  // by round
  Status failed_;
};

}  // namespace cohort::ps
