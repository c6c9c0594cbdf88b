// BarrierTable: the named, one-shot barriers of a job. Not synchronised.
//
// A barrier exists from its first call. It passes when every participant has called, and fails for
// all of them at the earliest deadline among its callers, when two callers name different
// participants, when a caller is no participant, or when a participant is gone. From then on every
// call of that name is answered at once with the old result.

#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/status.h>

#include "waiting.h"

namespace cohort {

// "worker:1, worker:2, worker:3 and 5 more".
std::string TaskNames(const std::vector<TaskId>& tasks);

class BarrierTable {
 public:
  using Done = WaitList<Status>::Done;

  struct Call {
    std::string name;
    TaskId task;
    std::set<TaskId> participants;
    bool everyone = false;  // the participants are all tasks, whoever these are
    Deadline now;
    Deadline deadline;
  };
  void Arrive(const Call& call, Done done, Completions& completions);

  // `task` will not call any more. A barrier of everyone goes on without it where `dispensable`;
  // every other one that waits for it fails with `why`.
  void TaskGone(const TaskId& task, const Status& why, bool dispensable, Completions& completions);

  void Expire(Deadline now, Completions& completions);
  void FailAll(const Status& status, Completions& completions);
  Deadline Next() const;

 private:
  struct Barrier {
    std::set<TaskId> participants;
    bool everyone = false;
    std::vector<TaskId> arrived;  // in order of arrival
    Deadline begun;
    Deadline deadline = Deadline::max();
    WaitList<Status> waiting;
    std::optional<Status> result;

    bool HasArrived(const TaskId& task) const;
    std::vector<TaskId> Missing() const;
  };

  void Finish(const std::string& name, Barrier& barrier, const Status& result,
              Completions& completions);
  void PassIfComplete(const std::string& name, Barrier& barrier, Completions& completions);

  std::map<std::string, Barrier> barriers_;
  std::set<std::string> open_;  // those without a result
};

}  // namespace cohort
