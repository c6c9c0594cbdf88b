// WorkerRoll: which processes are the workers of a job in step, as its chief knows them, and which
// of them are lost.
//
// A process is told by its incarnation (cohort/rpc/coordination.h). Nothing here waits, or asks
// anybody.
//
// Thread rules: none of its own. Its owner's lock guards it, as losses come on another thread.

#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/status.h>

namespace cohort {

class WorkerRoll {
 public:
  // A worker in whose place nobody is known, and since when.
  struct Loss {
    Status why;
    std::chrono::steady_clock::time_point since;
  };

  // It is the worker from now on, which is no longer lost.
  void Enter(const TaskId& worker, std::uint64_t process) { workers_[worker] = {process, {}}; }
  // Of one that is known. Of one that is lost already the first loss stays.
  void Lost(const TaskId& worker, const Status& why);
  // The job goes on without it.
  void Drop(const TaskId& worker) { workers_.erase(worker); }

  // 0: the job has no such worker, or does without it.
  std::uint64_t process(const TaskId& worker) const;
  // Where it is lost; else null. Until the next change.
  const Loss* loss(const TaskId& worker) const;
  // By task, which is the order of ranks.
  std::vector<TaskId> tasks() const;
  int size() const { return static_cast<int>(workers_.size()); }

  // Is none lost? Why the first one is; OK: none.
  bool complete() const { return why().ok(); }
  Status why() const;
  std::string NamesOfLost() const;  // "worker:1, worker:2"

 private:
  struct Worker {
    std::uint64_t process = 0;
    std::optional<Loss> loss;
  };
  std::map<TaskId, Worker> workers_;
};

}  // namespace cohort
