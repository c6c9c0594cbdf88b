// ClosureQueue: calls of functions, each handed out until a worker has returned from it.
//
// A worker holds some closures at a time and runs them in the order in which it got them; asking
// again without having one of them gives that one, so a repeated request does no harm. What a lost
// worker held is handed out again, before anything new. An error of a closure itself cancels all
// that waits and stays until it is taken; what workers hold then is not handed out again.
//
// Closures have numbers in the order in which they were added, and are begun in that order. Of
// those that have returned well some are remembered: when what they did is undone, all behind a
// number wait again (RollBack), in their order, under ids of their own, so that whoever still runs
// one has no say any more. A result that was there stays; an error of the second run is an error,
// and told with the first one where there is one already: the values are without that call.
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
  std::int64_t id = 0;      // from 1; another one after a RollBack
  std::uint64_t epoch = 0;  // of the servers, when it was handed out (Scheduler's)
  std::string function;
  std::string argument;
  std::vector<PerWorkerDataset> data;
};

// What is remembered at most of closures that have returned: the last of them.
struct ClosureMemory {
  std::size_t calls = 0;
  std::size_t bytes = 0;  // names and arguments, and 200 for each
};

class ClosureQueue {
 public:
  // `max_attempts`: how often a closure may run, at least once. `in_flight`: how many a worker may
  // hold.
  ClosureQueue(int max_attempts, int in_flight, Log log, ClosureMemory memory = {});

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
  // A server is lost. What is held now may fail of that, which is no attempt of it.
  void ServerLost();
  // All that waits or runs is over with this error, but for what runs again since a RollBack.
  void Cancel(const Status& why);

  // While it holds back, nothing is handed out that had not been begun before.
  void HoldBack(bool hold) { holds_back_ = hold; }
  // Is everything over that was begun?
  bool at_rest() const {
    return held_.empty() && (waiting_.empty() || waiting_.front().number > begun_);
  }
  // All up to this number were begun, or are over.
  std::int64_t begun() const { return begun_; }

  bool remembers() const { return memory_.calls > 0; }
  // Are all remembered that have returned behind this number?
  bool CanRollBack(std::int64_t number) const { return number >= forgotten_; }
  // Those wait again, and what is held does: what any of them did is undone. How many had returned.
  std::size_t RollBack(std::int64_t number);
  // No RollBack will be to before this number.
  void Forget(std::int64_t number);
  // That had returned before a RollBack, and have not again.
  std::size_t owed() const { return owed_; }

  std::size_t waiting() const { return waiting_.size(); }
  std::size_t running() const;  // and held
  bool idle() const { return waiting_.empty() && held_.empty(); }
  // The first since it was last taken.
  const Status& error() const { return error_; }
  // That, and behind it of which other calls the values are without.
  Status TakeError();
  // Is it, or goes with it, that of a call that the values are without?
  bool lacks() const { return lacking_ > 0; }
  // "3 wait, train (4) runs on worker:0, train (5) behind it": for messages.
  std::string Describe() const;

 private:
  struct Entry {
    Closure closure;
    std::int64_t number = 0;               // from 1, in the order in which they were added
    std::shared_ptr<RemoteResult> result;  // null: it was there before a RollBack
    int attempts = 0;                      // that have ended
    bool excused = false;                  // the one that runs is none
  };
  static std::size_t SizeOf(const Entry& entry);
  static std::string NameOf(const Entry& entry);
  static void End(Entry& entry, Status error, std::string value = {});
  void Fail(Entry& entry, const Status& error);
  void TellMissing(const Status& why);
  void Again(Entry entry, const Status& why);
  void CancelWaiting(const Status& why);
  void Remember(Entry entry);

  const int max_attempts_;
  const int in_flight_;
  const Log log_;
  const ClosureMemory memory_;
  std::int64_t last_id_ = 0;
  std::int64_t last_number_ = 0;
  std::int64_t begun_ = 0;
  std::deque<Entry> waiting_;
  std::map<TaskId, std::deque<Entry>> held_;  // none is empty
  std::map<std::int64_t, Entry> returned_;    // that are remembered, by number
  std::size_t returned_bytes_ = 0;
  std::int64_t forgotten_ = 0;  // of those up to this number some, or all, are not
  std::size_t owed_ = 0;        // entries that wait or are held without a result to come
  bool holds_back_ = false;
  Status error_;
  std::vector<std::string> missing_;  // beside it: of calls whose second run failed, the first few
  std::size_t more_missing_ = 0;      // and how many more
  std::size_t lacking_ = 0;           // all of them, error_ too
};

}  // namespace cohort::ps
