// Coordination: the service in the chief through which the processes of a job meet, agree, and
// learn of each other's end.
//
// Every process, the chief too, holds a CoordinationClient. Joining registers (task, incarnation,
// host, pid, cluster fingerprint); a second process for a task that is taken is refused with
// AlreadyExists and the first one's host and pid; a cluster that differs is FailedPrecondition with
// the first difference. While joining, and at the deadline, who is still missing is said by name,
// address and last error.
//
// A client beats its heart from a thread of its own. A task that falls silent, or that reports an
// error, fails the job: every client's failure() turns into that task's name and text, and
// callbacks run, within a heartbeat.
//
// Semantics follow the coordination service of TensorFlow (TSL); names of barriers are one-shot.

#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/cluster/key_value_store.h>
#include <cohort/core/clock.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>

namespace cohort {

struct CoordinationOptions {
  std::chrono::milliseconds join_timeout{300'000};
  std::chrono::milliseconds roll_call_interval{10'000};
  std::chrono::milliseconds heartbeat_interval{1'000};
  std::chrono::milliseconds heartbeat_timeout{10'000};  // silent for longer: dead
  // After a broken connection: how long the peer may take to come back before it counts as dead.
  std::chrono::milliseconds reconnect_grace{2'000};
  std::chrono::milliseconds shutdown_timeout{60'000};
  // Tasks whose loss does not fail the job (those that others replace, or do without): their end is
  // told to CoordinationServer::OnTaskLost only.
  std::function<bool(const TaskId&)> may_leave;
  // A job has met when so many of the tasks `of` are there, whichever, and all others. Those that
  // are not waited for may join later. Of tasks that may leave; by default all are waited for.
  struct Quorum {
    std::function<bool(const TaskId&)> of;
    int least = 0;
  };
  std::optional<Quorum> quorum;
  // Of a service in the place of one that is gone: tasks that were there and have ended, which need
  // not join.
  std::set<TaskId> ended;
  Clock* clock = &Clock::Real();
  Log log;
};

// The collective operation that a task has entered last, for the job's messages.
struct TaskProgress {
  std::uint64_t generation = 0;
  std::uint64_t sequence = 0;  // 0: none yet
  std::string operation;       // "AllReduce 'bucket 1' float32[1000]"
  std::chrono::milliseconds age{0};
  bool under_way = false;
};

struct RegroupOptions {
  int min_size = 1;                       // tasks that must go on
  std::chrono::milliseconds patience{0};  // how long tasks that are not there are waited for
  std::chrono::milliseconds timeout{300'000};
};
// Who goes on together.
struct Generation {
  std::uint64_t number = 0;     // higher than every one before
  std::vector<TaskId> members;  // in rank order; survivors come before newcomers
  int rank = 0;                 // of this task
  bool survivor = false;        // this task was in a generation before
};

// Thread rules: all methods from any thread. The destructor answers every call that waits, and ends
// a job that is not over: each client's failure() becomes Unavailable and names the chief. Of a job
// that has failed it waits up to a second for those that have just joined to ask, and hear why.
class CoordinationServer {
 public:
  virtual ~CoordinationServer() = default;
  virtual int port() const = 0;
  // The chief's own view: tasks that joined and are alive.
  virtual std::vector<TaskId> Alive() const = 0;
  // Of the process that is this task now; nothing if none is, or it is lost.
  virtual std::optional<std::uint64_t> Incarnation(const TaskId& task) const = 0;
  // Ends the job: every client's failure() becomes `why`, unless it has failed, or is over.
  // Returns what the job has failed for: `why`, or what came before it, which the chief's own
  // client may not have heard yet.
  virtual Status Fail(const Status& why) = 0;
  // Runs on the server's thread when a task that may leave is found dead, or left.
  virtual void OnTaskLost(std::function<void(const TaskId&, const Status&)> callback) = 0;

  // Binds `address` ("0.0.0.0:2222", port 0 for any); AlreadyExists names who holds the port if
  // that can be known.
  static Result<std::unique_ptr<CoordinationServer>> Start(const std::string& address,
                                                           const ClusterSpec& cluster,
                                                           const CoordinationOptions& options = {});
};

// Thread rules: all methods from any thread. The destructor leaves without waiting, within a
// second; without Shutdown before, the others' failure() becomes Cancelled "worker:1 (...) left the
// job".
class CoordinationClient : public KeyValueStore {
 public:
  // Blocks until this task is registered and, where `wait_for_all`, until every task of the cluster
  // is. The service may come up later than this call. DeadlineExceeded after join_timeout holds the
  // roll-call table.
  static Result<std::unique_ptr<CoordinationClient>> Join(const std::string& server_address,
                                                          const ClusterSpec& cluster,
                                                          const TaskId& task, bool wait_for_all,
                                                          const CoordinationOptions& options = {});

  virtual std::uint64_t incarnation() const = 0;
  // Blocks until `participants` (empty: all tasks) have called with this name. DeadlineExceeded
  // names the absent.
  virtual Status Barrier(const std::string& name, Deadline deadline,
                         const std::vector<TaskId>& participants = {}) = 0;
  // Blocks until every task that is there has called, and returns who they are: the way on after a
  // task that may leave was lost, or has come back. Whole at once when no task is absent; shrunk to
  // those there are when `patience` has passed. A lost task counts as there until the service has
  // found that out (reconnect_grace, heartbeat_timeout). DeadlineExceeded names who did not call.
  virtual Result<Generation> Regroup(const RegroupOptions& options = {}) = 0;
  // Aborted, naming them, while other tasks wait in Regroup for this one; known a heartbeat later.
  virtual Status RegroupAsked() const = 0;
  // Asked before each heartbeat, on its thread: what the service knows of each task's operations,
  // and says when one is late or lost. Must not block; nullptr: no more, and none is running.
  virtual void SetProgress(std::function<TaskProgress()> progress) = 0;
  // Tells every task that this one failed: their failure() becomes this code and "worker:1: text".
  // OK also if the job had failed before.
  virtual Status ReportError(const Status& error) = 0;
  // OK while the job is healthy; else what ended it: "worker:1 (host, pid 7) ...".
  virtual Status failure() const = 0;
  // Is the failure that the service is gone, or another one in its place? Who joins anew finds
  // that.
  virtual bool service_lost() const = 0;
  // Runs once, on the heartbeat thread, when failure() becomes an error (at once if it has). Must
  // not block, call Shutdown or destroy the client. Not run any more once the client has left.
  virtual void OnFailure(std::function<void(const Status&)> callback) = 0;
  // Leaves in order: waits until all tasks want to leave (shutdown barrier), at most
  // shutdown_timeout. Tasks that may leave and are not there are not waited for. After OK every
  // further call is FailedPrecondition. DeadlineExceeded names the absent; to these the job fails.
  virtual Status Shutdown() = 0;
};

}  // namespace cohort
