// ClosureQueue: calls of functions, each handed out until a worker has returned from it.
//
// A worker holds one closure at a time; asking again without having finished it gives the same one,
// so a repeated request does no harm. What a lost worker held is handed out again, before anything
// new. An error of a closure itself cancels all that waits and stays until it is taken; what is
// running then is not handed out again.
//
// Not synchronised.

#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>

namespace cohort::ps {

// What became of a closure.
struct RemoteResult {
  bool over = false;
  Status error;
  std::string value;
};

struct Closure {
  std::int64_t id = 0;  // from 1
  std::string function;
  std::string argument;
};

class ClosureQueue {
 public:
  // `max_attempts`: how often a closure may be handed out, at least once.
  ClosureQueue(int max_attempts, Log log);

  // Owners: this queue until the closure is over, and the caller.
  std::shared_ptr<RemoteResult> Add(std::string function, std::string argument);
  // Null: none waits. Valid until the queue changes.
  const Closure* Next(const TaskId& worker);
  // Ignored unless the worker holds that closure. Unavailable and Aborted are not its error: it is
  // handed out again.
  void Finish(const TaskId& worker, std::int64_t id, Result<std::string> outcome);
  // What the worker held is free again.
  void Lost(const TaskId& worker, const Status& why);
  // All that waits or runs is over with this error.
  void Cancel(const Status& why);

  std::size_t waiting() const { return waiting_.size(); }
  std::size_t running() const { return held_.size(); }
  bool idle() const { return waiting_.empty() && held_.empty(); }
  // The first since it was last taken.
  const Status& error() const { return error_; }
  Status TakeError();
  // "3 wait, train (4) runs on worker:0": for messages.
  std::string Describe() const;

 private:
  struct Entry {
    Closure closure;
    std::shared_ptr<RemoteResult> result;
    int attempts = 0;
  };
  static std::string NameOf(const Entry& entry);
  static void End(Entry& entry, Status error, std::string value = {});
  void Fail(Entry& entry, const Status& error);
  void Again(Entry entry, const Status& why);
  void CancelWaiting(const Status& why);

  const int max_attempts_;
  const Log log_;
  std::int64_t last_id_ = 0;
  std::deque<Entry> waiting_;
  std::map<TaskId, Entry> held_;
  Status error_;
};

}  // namespace cohort::ps
