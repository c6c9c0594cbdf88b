// WorkerTable: which of a job's workers are expected, at work, done or lost, which process each of
// them is, and when each has shown progress last.
//
// A worker is one process at a time: who attaches takes the place of the process before it, under a
// client's number of its own. A process whose place was taken, or that was given up as lost, is
// refused from then on. Where nobody has come, or nobody is left, CheckLonely says so after
// `rejoin_timeout`.
//
// What a worker holds, and the journal, are its owner's, which is told when they change.
//
// Not synchronised; it waits for nothing, and the time is the caller's. All calls cost what a look
// through the workers does, at most.

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/clock.h>
#include <cohort/core/status.h>

#include "parameter_server/chief/journal.h"
#include "parameter_server/chief/round_table.h"

namespace cohort::ps {

// A worker's process.
struct Sender {
  TaskId task;
  std::uint64_t incarnation = 0;
  std::uint64_t epoch = 0;  // of the servers, as it knows it
};

class WorkerTable {
 public:
  using Time = std::chrono::steady_clock::time_point;
  enum class Phase { kExpected, kExcused, kAttached, kDone, kLost };

  // `first_client`: the number of the first process; 0: 1.
  WorkerTable(std::span<const TaskId> workers, std::uint64_t first_client,
              std::chrono::milliseconds rejoin_timeout, Time now);

  // In the place of another chief's table, whose workers had `ended` so. Who of them is back here
  // already has not: returned.
  std::vector<TaskId> Succeed(const std::map<TaskId, JournalState::End>& ended, Time now);
  // Nobody waits for it, if it has not come yet.
  void Excuse(const TaskId& worker, Time now);

  // The place that a process has.
  struct Place {
    std::uint64_t client = 0;
    // What the worker was before; nothing: this process had the place already.
    std::optional<Phase> before;
    std::uint64_t gone = 0;  // the client of the process before; 0: none
  };
  // FailedPrecondition: it is no worker; or it knows servers of a job that this is not, which can
  // be told once `servers_are_known`, and until then is kept for CheckStranger.
  Result<Place> Attach(const Sender& sender, bool servers_are_known, Time now);
  Status CheckStranger() const;
  // Aborted: the process is not, or no more, a worker's.
  Status Check(const Sender& sender) const;
  // The worker is done.
  void Leave(const TaskId& worker);
  // False, and nothing changes: it is done or lost already, or no worker.
  bool Lose(const TaskId& worker, const Status& why, Time now);

  // Signs of progress: of a process that has been through so many steps; of a worker that asks for
  // work; of all, which have waited and not hung.
  void Progressed(const Sender& sender, std::uint64_t steps, Time now);
  void Asked(const TaskId& worker, Time now);
  void Moved(Time now);
  // Of all that are `awaited`, the one that is at work and has been silent longest, if it is too
  // long: for `step_timeout`, or before its first piece for rejoin_timeout. Never `self`.
  struct Silent {
    TaskId task;
    double seconds = 0;
  };
  std::optional<Silent> LongestSilent(std::span<const TaskId> awaited,
                                      std::chrono::milliseconds step_timeout,
                                      const std::optional<TaskId>& self, Time now) const;

  // The worker has got a piece of work, again or not; and finished it.
  void Got(const TaskId& worker, const EpochKey& epoch, std::int64_t piece, Time now);
  void Finished(const TaskId& worker, Time now);
  // The longest that a worker was at one so far.
  Duration longest_piece() const { return longest_piece_; }

  // Of its last process; 0: none has come.
  std::uint64_t client(const TaskId& worker) const { return workers_.at(worker).client; }
  std::size_t size() const { return workers_.size(); }
  std::size_t attached() const;
  // Those that a round waits for: expected or attached.
  std::set<TaskId> Expected() const;
  // Are all done or lost?
  bool HaveLeft() const;
  // Is nobody at work or to come, and has one of them finished?
  bool Over(Time now) const;
  // Unavailable: there has been no worker for longer than rejoin_timeout.
  Status CheckLonely(Time now) const;

 private:
  struct Worker {
    Phase phase = Phase::kExpected;
    std::uint64_t incarnation = 0;
    std::uint64_t client = 0;  // 0: none yet
    Status end;
    std::uint64_t steps = 0;  // and when there was a sign of progress last
    Time moved;
    // The piece of work that it got last, and when.
    std::pair<EpochKey, std::int64_t> piece;
    Time since;
  };

  Status CheckStranger(const TaskId& worker) const;
  void StartLoneliness(Time now);

  const std::chrono::milliseconds rejoin_timeout_;
  std::map<TaskId, Worker> workers_;
  std::uint64_t next_client_;
  bool succeeds_ = false;           // another one
  Time excused_until_;              // who was excused may be on its way from that one's job
  std::optional<TaskId> stranger_;  // a worker that another one's job had
  std::optional<Time> lonely_since_;
  Status last_loss_;
  Duration longest_piece_{0};
};

}  // namespace cohort::ps
