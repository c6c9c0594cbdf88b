// CoordinationState: what the coordination service knows and decides, without a network.
//
// Who has joined, who is alive, the barriers, the keys and the one failure that ends a job. Time
// comes from the options' Clock and passes only in Tick, so that tests need none.
//
// Thread rules: all methods from any thread. `done` closures are called exactly once, on the thread
// whose call completed them (perhaps within the very call that passed them), with no lock held; all
// that still wait are answered by Stop.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <cohort/rpc/coordination.h>

#include "barrier_table.h"
#include "key_value_table.h"
#include "regroup_table.h"
#include "waiting.h"

namespace cohort {

// Who asks.
struct Caller {
  TaskId task;
  std::uint64_t incarnation = 0;
};

struct Registration {
  Caller caller;
  std::string host;
  std::int64_t pid = 0;
  std::chrono::milliseconds uptime{0};
  std::uint64_t fingerprint = 0;  // of the caller's cluster
  std::string cluster_json;
};

class CoordinationState {
 public:
  using Done = std::function<void(const Status&)>;
  using ValueDone = std::function<void(const Result<std::string>&)>;

  CoordinationState(ClusterSpec cluster, CoordinationOptions options);

  Status Register(const Registration& registration);
  // OK when every task has joined, and also at `until`; MissingText then tells.
  void RollCall(const Caller& caller, Deadline until, Done done);
  // OK when the caller has a Watch, and also at `until`.
  void AwaitWatch(const Caller& caller, Deadline until, Done done);
  // The job's failure, if it has failed.
  Status Heartbeat(const Caller& caller, const std::optional<TaskProgress>& progress = {});
  // Why the caller should call Regroup; OK if nobody waits for it.
  Status RegroupAsked(const Caller& caller) const;
  // Answers with the job's failure, or OK at `until`. The returned number is for WatchBroken, which
  // says that the caller's connection ended before the answer.
  std::uint64_t Watch(const Caller& caller, Deadline until, Done done);
  void WatchBroken(const Caller& caller, std::uint64_t watch);

  // `sequence` makes a repeated request the same insertion.
  Status Insert(const Caller& caller, const std::string& key, std::string value,
                std::uint64_t sequence);
  Result<std::string> Get(const Caller& caller, const std::string& key);
  void Wait(const Caller& caller, const std::string& key, Deadline deadline, ValueDone done);
  void Barrier(const Caller& caller, const std::string& name, Deadline deadline,
               const std::vector<TaskId>& participants, Done done);

  void Regroup(const Caller& caller, std::uint64_t previous, int min_size, Duration patience,
               Deadline deadline, RegroupTable::Done done);

  Status ReportError(const Caller& caller, const Status& error);
  // At once; of a task that may not leave this ends the job.
  Status Leave(const Caller& caller);
  // The shutdown barrier.
  void Shutdown(const Caller& caller, Deadline deadline, Done done);

  // Finds the dead and the late. To be called again at the returned time at the latest. A time
  // longer than that without Tick is a pause of the service, and is not held against the tasks.
  Deadline Tick();
  // Tasks that may leave and have gone since the last call, and how. The shutdown barrier is not
  // passed before Told: whoever takes them may find that the job cannot do without, and Fail it.
  std::vector<std::pair<TaskId, Status>> TakeLost();
  void Told();
  // The job, unless it is over or has failed, fails with `why`. What it has failed with is
  // returned, or where it is over, `why`.
  Status Fail(const Status& why);
  // Every wait is answered; the job, unless it is over, has failed with `why`.
  void Stop(const Status& why);

  Status failure() const;
  // Is there a task that has just joined a job that has failed, and cannot have heard of it?
  bool unheard() const;
  bool complete() const;  // every task that is waited for has joined
  std::vector<TaskId> Alive() const;
  std::optional<std::uint64_t> Incarnation(const TaskId& id) const;  // of one that is present

  // The tasks that have not joined, with their addresses; none when complete.
  std::vector<std::pair<TaskId, std::string>> Missing() const;
  // Why each of them is not here, as far as is known.
  void SetReasons(std::map<TaskId, std::string> reasons);
  // "2/4: worker:2 (10.0.0.8:2222, connection refused), worker:3 (...)"; empty when complete. With
  // a quorum also how many more of them it takes.
  std::string MissingText() const;

 private:
  enum class Phase { kAbsent, kJoined, kLeaving, kLeft, kLost };

  struct Task {
    Phase phase = Phase::kAbsent;
    bool may_leave = false;
    bool has_joined = false;  // at some time
    bool of_quorum = false;
    bool heard = false;  // of the failure, in an answer
    std::uint64_t incarnation = 0;
    std::string host;
    std::int64_t pid = 0;
    Deadline started;
    Deadline last_seen;
    std::uint64_t watch = 0;               // the last one; 0: none yet
    WaitList<Status> unwatched;            // who waits for the first
    std::optional<Deadline> broken_since;  // its connection
    Status end;                            // of a lost one
    std::optional<TaskProgress> progress;
    Deadline progress_at;  // when it was told

    bool present() const { return phase == Phase::kJoined || phase == Phase::kLeaving; }
  };

  // All below with mutex_ held.
  std::string Describe(const TaskId& id, const Task& task) const;
  Status Gone(const TaskId& id, const Task& task) const;
  std::string LastEntered(const Task& task) const;
  std::string ProgressText() const;
  std::string LastHeartbeats(const TaskId& reporter, const std::string& text) const;
  void ReviewRegroup(Completions& completions);
  Status Admit(const Registration& registration, Task& task, Completions& completions);
  Status CheckTaken(const Registration& registration, Task& task, Completions& completions);
  // The caller's record; an error if it is not the present incarnation of a task.
  Result<Task*> Find(const Caller& caller);
  // Of the tasks that do not all have to come: how many must come yet.
  std::int64_t LackingQuorum() const;
  // As Find, and an error if the job has failed or the caller has left.
  Result<Task*> FindActive(const Caller& caller);
  void Fail(const Status& failure, Completions& completions);
  // Answers whatever is parked.
  void EndWaits(const Status& status, Completions& completions);
  void Lose(const TaskId& id, Task& task, const Status& why, Completions& completions);
  void FinishShutdownIfComplete(Completions& completions);
  std::vector<TaskId> NotInShutdown() const;
  void ForgivePause(Deadline now);
  void CheckLiveness(Deadline now, Completions& completions);
  void CheckShutdown(Deadline now, Completions& completions);
  Deadline NextEvent(Deadline now) const;
  std::string MissingTextLocked() const;

  const ClusterSpec cluster_;
  const CoordinationOptions options_;
  const std::uint64_t fingerprint_;
  const std::string cluster_json_;

  mutable std::mutex mutex_;
  std::map<TaskId, Task> tasks_;
  std::map<TaskId, std::string> reasons_;
  std::uint64_t watches_ = 0;
  bool complete_ = false;
  bool over_ = false;  // every task has left in order
  Status failure_;
  WaitList<Status> roll_call_;
  WaitList<Status> watching_;
  WaitList<Status> shutdown_;
  Deadline shutdown_begun_;
  KeyValueTable keys_;
  BarrierTable barriers_;
  RegroupTable regroup_;
  std::vector<std::pair<TaskId, Status>> lost_;
  bool telling_ = false;  // of those that were taken last
  Deadline last_tick_;
};

}  // namespace cohort
