// RegroupTable: how the tasks of a job agree on who goes on together. Not synchronised.
//
// A round begins with the first call. It is decided when every task that is there has called and
// they are enough, at once if nobody is absent, else when the callers' patience with the absent has
// run out. It fails for all at the earliest deadline among its callers. A decision has a number
// that is higher than every one before, and the members in rank order: those of the latest
// generation first, so that rank 0 has what the job has learnt, newcomers last.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/status.h>

#include "waiting.h"

namespace cohort {

class RegroupTable {
 public:
  struct Member {
    TaskId task;
    std::uint64_t incarnation = 0;
  };
  struct Decision {
    std::uint64_t generation = 0;
    std::vector<Member> members;
  };
  using Done = std::function<void(const Result<Decision>&)>;

  struct Call {
    Member caller;
    std::uint64_t previous = 0;  // the generation it comes from; 0: none
    int min_size = 1;
    Deadline now;
    Deadline patience;
    Deadline deadline;
  };
  // A repeated call takes the place of the first; one whose round has been decided meanwhile is
  // answered with that.
  void Arrive(const Call& call, Done done, Completions& completions);
  // Decides or gives up, as far as time allows and who is there: `present` of `all` tasks.
  void Review(Deadline now, const std::map<TaskId, std::uint64_t>& present,
              const std::vector<TaskId>& all, Completions& completions);
  // Why `task` should call: others wait for it, or OK.
  Status Asked(const TaskId& task) const;
  void FailAll(const Status& status, Completions& completions);
  Deadline Next(Deadline now) const;  // when time decides next

 private:
  struct Waiting {
    Call call;
    Done done;
  };
  void Decide(Completions& completions);
  void AnswerAll(const Result<Decision>& answer, Completions& completions);

  std::map<TaskId, Waiting> round_;
  Deadline begun_;
  std::uint64_t generation_ = 1;  // the highest known; the first communicator needs no decision
  Decision last_;
};

}  // namespace cohort
