// ClosureQueue: calls of functions, each handed out until a worker has returned from it.
//
// A worker holds some closures at a time and runs them in the order in which it got them; asking
// again without having one of them gives that one, so a repeated request does no harm. What a lost
// worker held is handed out again, before anything new. An error of a closure itself cancels all
// that waits and stays until it is taken; what workers hold then is not handed out again.
//
// Not synchronised.

#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/strategies/coordinator.h>

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
  std::vector<PerWorkerDataset> data;
};

class ClosureQueue {
 public:
  // `max_attempts`: how often a closure may run, at least once. `in_flight`: how many a worker may
  // hold.
  ClosureQueue(int max_attempts, int in_flight, Log log);

  // Owners: this queue until the closure is over, and the caller.
  std::shared_ptr<RemoteResult> Add(std::string function, std::string argument,
                                    std::vector<PerWorkerDataset> data = {});
  // What it holds beyond those that it `has`, else a further one: the first that waits, unless it
  // holds others and no more than `spared` wait. Null: none. Valid until the queue changes.
  const Closure* Next(const TaskId& worker, std::span<const std::int64_t> has = {},
                      std::size_t spared = 0);
  // Ignored unless the worker holds that closure. Unavailable and Aborted are not its error: it is
  // handed out again.
  void Finish(const TaskId& worker, std::int64_t id, Result<std::string> outcome);
  // What the worker held is free again.
  void Lost(const TaskId& worker, const Status& why);
  // All that waits or runs is over with this error.
  void Cancel(const Status& why);

  std::size_t waiting() const { return waiting_.size(); }
  std::size_t running() const;  // and held
  bool idle() const { return waiting_.empty() && held_.empty(); }
  // The first since it was last taken.
  const Status& error() const { return error_; }
  Status TakeError();
  // "3 wait, train (4) runs on worker:0, train (5) behind it": for messages.
  std::string Describe() const;

 private:
  struct Entry {
    Closure closure;
    std::shared_ptr<RemoteResult> result;
    int attempts = 0;  // that have ended
  };
  static std::string NameOf(const Entry& entry);
  static void End(Entry& entry, Status error, std::string value = {});
  void Fail(Entry& entry, const Status& error);
  void Again(Entry entry, const Status& why);
  void CancelWaiting(const Status& why);

  const int max_attempts_;
  const int in_flight_;
  const Log log_;
  std::int64_t last_id_ = 0;
  std::deque<Entry> waiting_;
  std::map<TaskId, std::deque<Entry>> held_;  // none is empty
  Status error_;
};

}  // namespace cohort::ps
