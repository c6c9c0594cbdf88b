// Job: a process's place in a parameter-server job: the services it runs, the ones it knows, and
// what becomes of the others.
//
// A server process listens for frames, the chief runs the coordination service and the scheduler;
// every process joins coordination, where servers publish their addresses. A failure of the job
// aborts the calls of this process's clients.
//
// So does the loss of a server while the job trains. Where another process takes its place, the
// chief has all servers go back to a save (Recover), in another epoch (epoch_gate.h), and the other
// processes get clients of that epoch (Rejoin).
//
// The chief may be lost as well, where it keeps a journal: the others wait for another process in
// its place, join that one anew, and go on in the epoch of the servers that it begins.
//
// The class is in four files: job_meeting.cc how a process comes to the others, job.cc what it does
// there, job_server_recovery.cc and job_chief_recovery.cc what becomes of it when those are lost.
//
// Thread rules: one thread, that of the strategy.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/status.h>
#include <cohort/rpc/coordination.h>
#include <cohort/strategies/strategy.h>

#include "parameter_server/chief/scheduler.h"
#include "parameter_server/chief/scheduler_service.h"
#include "parameter_server/chief/server_roll.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/server.h"
#include "parameter_server/variables/client.h"
#include "parameter_server/variables/retired_clients.h"

namespace cohort::ps {

class Retirements;
class ViewWatch;

// Where the address of a server's process is published.
std::string ProcessKey(int server, std::uint64_t incarnation);

// What a call of this process has noticed, the coordination service says within heartbeat_timeout,
// and so much later where a connection broke (CoordinationOptions::reconnect_grace) or cores are
// few.
inline constexpr std::chrono::milliseconds kNoticed{2'500};

// When the processes have met: the chief says which kind of strategy trains in this cluster with
// servers, and a process of another kind ends the job with FailedPrecondition and both names,
// before anybody waits for what only jobs of the other kind do.
Status AgreeOnKind(CoordinationClient& coordination, const ClusterConfig& config,
                   const std::string& kind, Deadline deadline);

class Job {
 public:
  ~Job();

  // Blocks until all processes have met. `kind`: of the strategy that the job is for.
  static Result<std::unique_ptr<Job>> Join(const ClusterConfig& config,
                                           const StrategyOptions& options, const std::string& kind);

  const ClusterConfig& config() const { return config_; }
  const std::vector<TaskId>& workers() const { return workers_; }
  int num_servers() const { return num_servers_; }
  bool is_chief() const { return config_.task == chief_; }
  bool is_server() const { return config_.task.type == TaskType::kPs; }
  bool trains() const { return config_.task.type == TaskType::kWorker; }
  int rank() const;  // among the workers

  Scheduler* scheduler() { return scheduler_.get(); }  // in the chief
  const Scheduler* scheduler() const { return scheduler_.get(); }
  // In a worker; another one after Rejoin.
  SchedulerClient* scheduler_client() { return scheduler_client_.get(); }
  Server* server() { return server_.get(); }  // in a server

  // A client of all servers, not in a server itself. The job owns it, until Recover or Rejoin.
  Client& Connect(const ModelSpec& spec);
  Client* client() { return client_.get(); }
  RowClient* rows() { return row_client_.get(); }  // after Connect, of a model with tables
  // The chief says that the servers' variables have values; others wait for it.
  Status Initialised();
  // The chief's bytes on every process that calls as often, also where another process takes the
  // chief's place meanwhile; client() may be another one then.
  Status Broadcast(std::span<std::byte> bytes);

  // What the job knows of the reason for `status`.
  Status Explain(const Status& status) const;
  // For gradients, so that servers of this host read them where they lie; null: they travel by TCP.
  FrameMemory* frame_memory() const { return frame_memory_.get(); }
  // Ends the others with it; not where this process alone cannot reach who they reach.
  void ReportError(const Status& error);

  // In a server: until the job is over.
  Status ServeVariables();
  // In the chief: until the workers are done. `look`: a few times a second meanwhile.
  Status Coordinate(const std::function<Status()>& look = {});
  // In the chief, with nothing under way: fn, between two updates. OK without it where that would
  // wait for this process itself: to be asked again after its next step. Where a worker does not
  // come to the end of what it is at, or servers cannot be told of one that is gone, others wait
  // for that no longer than is usual: `late` instead of fn.
  Status BetweenUpdates(const std::function<Status(const Scheduler::Cut& cut)>& fn,
                        const std::function<void(const std::string& why)>& late);

  // In the chief of a job that calls functions: fn, when all that was begun of them is over, before
  // anything else is; so many `calls` are. False, and not fn: a server is lost. Else what ended the
  // wait, as Scheduler::BeginCallCut has it; DeadlineExceeded also where servers cannot be told
  // of a worker that is gone.
  Result<bool> BetweenCalls(const std::function<void(std::int64_t calls)>& fn, Deadline deadline);

  // In the chief: between these the loss of a server need not end the job. An error of the second:
  // one is lost, and nobody is left to train what is lost with it.
  void BeginTraining();
  Status EndTraining();
  // In the chief, when `error` is that of a server that was lost: waits for another process in its
  // place, and has all of them begin an epoch with what `restore` brings them, by this job's new
  // clients; it returns the step. Else returns the error, and where that fails the job does.
  //
  // Under ServerLoss::kPartial only servers that have no values any more are brought theirs (`only`
  // is not null), which count as those of `version` from then on. So it is under kReplica with
  // servers of whose parts there is no copy either, where application is asynchronous; else all go
  // back. Those of whose parts there is one get what it has.
  struct Lost {
    std::vector<int> servers;
    std::uint64_t version = 0;  // 0: that of the save
  };
  using Restore = std::function<Result<std::int64_t>(const Lost* only)>;
  Status Recover(const Status& error, const Restore& restore);
  // In another process: OK when the servers are in a new epoch, of which the clients then are, also
  // where another process had to take the chief's place. Else returns the error.
  Status Rejoin(const Status& error);
  // In a process that trains, when a step's pushes stand in the servers: they are those that a
  // client after the present one goes on from, where servers that are not lost go on as they are,
  // so that what a step that is done again had sent counts once. StepDone: when all of it is done.
  void PushDone();
  void StepDone();
  // After the last of these: does what was handed out, and made of it, still stand?
  bool work_stands() const { return work_stands_; }
  // In a worker: the servers' epoch that its clients are in, and the last one up to there that
  // began with a roll-back.
  std::uint64_t epoch() const { return epoch_; }
  std::uint64_t rolled_back() const { return rolled_back_; }
  // In a worker, from now on: it does not outlive the chief, though that keeps a journal.
  void NeedChief() { needs_chief_ = true; }
  bool LostChief() const { return coordination_ != nullptr && coordination_->service_lost(); }
  // Updates of parts of the model that were lost with servers, in the chief.
  std::int64_t lost_updates() const { return lost_updates_; }
  // Rows' residuals (TableSpec::wire_feedback) that this process has dropped.
  std::uint64_t dropped_residuals() const {
    return dropped_residuals_ + (row_client_ == nullptr ? 0 : row_client_->residuals().dropped);
  }

  // In a worker, through the loss of the chief, after which client() is another one.
  Status OpenDataset(int dataset, const DatasetInfo& info);
  // In a worker: it needs no more data.
  Status Done();
  // Leaves in order. A worker may at any time; the chief ends the servers. After an error it may be
  // called again, and does what is left to do.
  Status Leave();
  // Scheduler::Acknowledge, of this process's split.
  void Acknowledge(const EpochKey& epoch, const FinishedSplit& finished);

 private:
  Job(ClusterConfig config, const StrategyOptions& options);

  // How often a process that waits looks whether the job is healthy.
  static constexpr std::chrono::milliseconds kLook{200};
  static double SecondsSince(std::chrono::steady_clock::time_point begun);

  // job_meeting.cc
  Status StartServices();
  Status JoinCoordination(bool wait_for_all, std::chrono::milliseconds timeout);
  Status Publish();
  Status Meet(const std::string& kind);
  Status FindServices();
  Status FindServers();
  Status BeginJournal();
  Status AwaitWorkers(const std::map<TaskId, JournalState::End>& ended);
  void ExcuseAbsent();
  Status FindScheduler();
  Status AwaitView(Deadline deadline, std::uint64_t least);
  Result<std::string> AddressOf(int server, std::uint64_t* incarnation);

  // job.cc
  void MakeClients(std::uint64_t epoch, bool servers_stand);
  void AbortClients(const Status& why);  // with the lock held
  void StartRetirements();
  void StopRetirements();
  bool RetirementsTold() const;
  void Gone(std::uint64_t client);  // a worker's process
  void Fail(const Status& why);

  // job_server_recovery.cc, in the chief.
  struct Missing {
    std::set<int> parts;   // of servers that have no values, or not all of them
    std::set<int> copies;  // by the server whose part it is
  };
  // One that is under way, through all its attempts.
  struct Recovery {
    const Restore& restore;
    const std::chrono::steady_clock::time_point begun;
    std::int64_t steps_before = 0;  // that workers had finished
    Missing missing;
    std::uint64_t newest = 0;  // version that any server had
    std::int64_t step = 0;     // that was restored; 0: none was
    bool rolls_back = false;   // all servers: some part is lost, and they must be at one step
  };
  void ServerLost(CoordinationServer& server, const TaskId& task, const Status& how);
  bool AwaitLoss(const Status& error);
  std::string NamesOfLost() const;
  Status PauseRecovery(std::chrono::milliseconds pause) const;
  Status RenewClients(const Recovery& recovery);
  Status AwaitServers();
  Status NobodyCame(int server, const Status& why) const;
  Status BeginEpoch(Recovery* recovery);
  Status KeepValues(Recovery* recovery, const std::vector<std::uint64_t>& retired);
  Status Mend(Missing* missing);
  std::optional<Status> ResumeWork(const Recovery& recovery, int seen);
  void ReportRecovery(const Recovery& recovery);
  Status FailJob(const Status& why);
  // Do servers that are not lost go on as they are?
  bool keeps() const { return server_loss_ != ServerLoss::kRollBack; }
  bool Keeps(const Recovery& recovery) const { return keeps() && !recovery.rolls_back; }

  // job_chief_recovery.cc, in the others.
  bool chief_may_be_lost() const { return !journal_folder_.empty() && !needs_chief_; }
  bool ChiefLost() const;
  bool AwaitChiefLost(const Status& error) const;
  Status FindChief();
  Status CutOff(const Status& error);
  void Told(const ServerView& view);
  Status AwaitNextView();
  void TakeView();

  const ClusterConfig config_;
  const std::chrono::milliseconds join_timeout_;
  const std::chrono::milliseconds heartbeat_timeout_;
  const std::chrono::milliseconds rejoin_grace_;
  const ServerLoss server_loss_;
  const StartPolicy start_;
  const std::string journal_folder_;  // empty: the loss of the chief ends the job
  const Log log_;
  const int backup_workers_;
  const std::chrono::milliseconds read_timeout_;
  const ServerWire wire_;
  const FrameTransport transport_;
  const std::shared_ptr<FrameMemory> frame_memory_;  // shared with what it allocated
  const TaskId chief_;
  const std::vector<TaskId> workers_;
  const int num_servers_;
  bool left_ = false;
  bool work_stands_ = false;
  bool cut_off_ = false;  // what this process reports is no error of the job
  bool met_ = false;      // in a worker: have the servers been given values?
  bool needs_chief_ = false;
  std::int64_t lost_updates_ = 0;
  std::uint64_t dropped_residuals_ = 0;  // by clients before the present one, or with them
  int broadcasts_ = 0;
  std::atomic<std::uint64_t> steps_{0};  // that this process has been through
  // Of the last step that is done, by server.
  std::vector<std::uint64_t> pushes_;
  std::vector<std::uint64_t> row_pushes_;

  // Services of this process; the state before what serves it.
  std::unique_ptr<Journal> journal_;  // in a chief that may be lost
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<CoordinationServer> coordination_server_;
  std::unique_ptr<SchedulerServer> scheduler_server_;
  std::unique_ptr<Server> server_;

  ModelSpec spec_;  // from Connect on
  std::vector<std::string> server_addresses_;
  mutable std::mutex failure_mutex_;  // guards what follows, the pointers against Fail
  Status failure_;
  std::uint64_t epoch_ = 0;  // of the clients; written by the strategy's thread
  std::uint64_t rolled_back_ = 0;
  std::uint64_t number_ = 0;  // theirs in a worker, of the scheduler
  // Elsewhere than in the chief: the view that it told last, and when.
  ServerView view_;
  std::chrono::steady_clock::time_point heard_;
  std::condition_variable view_changed_;
  // In the chief.
  enum class Stage { kJoining, kSetup, kTraining, kOver, kLeaving };
  Stage stage_ = Stage::kJoining;
  ServerRoll roll_;
  RetiredClients gone_;                // workers' processes
  std::vector<std::uint64_t> untold_;  // of them, while there is nothing to tell servers with
  std::set<TaskId> lost_workers_;
  std::unique_ptr<Client> client_;
  std::unique_ptr<RowClient> row_client_;
  std::unique_ptr<SchedulerClient> scheduler_client_;
  std::unique_ptr<Retirements> retirements_;  // in the chief
  std::unique_ptr<ViewWatch> watch_;          // in another process that is no server
  // Last: its callbacks use the above.
  std::unique_ptr<CoordinationClient> coordination_;
};

}  // namespace cohort::ps
