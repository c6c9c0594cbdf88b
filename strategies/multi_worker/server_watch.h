// ServerWatch: the servers of a job whose workers train in step, and these workers: which process
// is in whose place, and what the others do when one is lost.
//
// The chief's coordination service finds a loss; the chief then says so to the other workers under
// a key of the service, and each worker's calls end with that error. All stop, whatever they were
// at, and meet again: when there is a process for every server, and for every worker, or the
// workers that are left have waited long enough for another one (worker_patience). The chief says
// who meets; a process that is started in a lost worker's place waits until it is asked to come.
//
// So that all come to the same conclusion, time is cut into terms, which every worker counts alike.
// A term of training ends in one of two ways, of which the chief says one, once: a process was
// lost, or training is over. One that is lost when it is over, or before it begins, ends the job.
// So does the loss of the chief.
//
// A process is told by its incarnation (cohort/rpc/coordination.h).
//
// Thread rules: one thread, that of the strategy, but for loss(), from any. A thread of its own
// waits for what the chief says, or, in the chief, says it, and ends the calls of a term.

#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/rpc/coordination.h>
#include <cohort/strategies/strategy_options.h>

#include "multi_worker/worker_roll.h"
#include "parameter_server/chief/server_roll.h"

namespace cohort {

class ServerWatch {
 public:
  // All outlive this, but the client and the server, which Stop is called before the end of.
  // `server`: of the chief, else nullptr. `end_calls` has all calls of this term end with an error:
  // on this one's own thread, under no lock. It may take a disk's time, and the next term begins
  // when it has returned.
  struct Parts {
    CoordinationServer* server = nullptr;
    CoordinationClient* client = nullptr;
    std::function<void(const Status&)> end_calls;
  };
  ServerWatch(const ClusterConfig& config, const StrategyOptions& options, Parts parts);
  ~ServerWatch();

  // Whether this job can go on when a server, or a worker that is not the chief, is lost.
  static bool GoesOn(const ClusterConfig& config, const StrategyOptions& options);
  // Why the job ends, of a worker whose end the chief's service has told.
  static Status EndOf(const Status& how);

  // Once, before all that follows, on all workers: in the chief when all have joined. A process
  // that comes while the others train, in a lost worker's place, blocks until it is asked to come,
  // and there is a term already, or until the job ends: Aborted, or its failure.
  Status Meet();
  // The workers of this term, by rank.
  const std::vector<TaskId>& crew() const { return crew_; }
  // Has this process come to others that were training? Until EndTraining.
  bool joined_in_training() const { return joined_in_training_; }

  // Counts up, equally on all workers. From 0, which is before training.
  std::uint64_t term() const;
  // Of this term; OK: none is known.
  Status loss() const;

  // As Membership's; EndTraining when this process knows that the others have done their work (the
  // chief), or may know it (the others).
  bool BeginTraining();
  Status EndTraining();
  Status CheckLoss(const Status& error);

  // After CheckLoss, on all workers: until all that are left have called, and there is a process
  // for every server. Then another term has begun. On an error the job is over.
  Status AwaitNextTerm();

  // In the chief: where the servers of this term are; waits for those that have not come yet.
  Result<std::vector<std::string>> Addresses();
  // The chief has told the servers what they hold in this term, which the others wait for: then
  // they get the addresses. An error where one is lost meanwhile.
  Status SayReady(const std::vector<std::string>& addresses);
  Result<std::vector<std::string>> AwaitReady();

  // Training is over, and servers leave.
  void Leave();
  // Nothing is called any more that was given, and nothing waits.
  void Stop();

 private:
  using Lock = std::unique_lock<std::mutex>;
  enum class Stage { kSetup, kTraining, kOver, kLeaving };

  bool is_chief() const { return server_ != nullptr; }
  std::string Key(const std::string& what) const;  // of this term
  void TaskLost(const TaskId& task, const Status& how);
  void ServerLost(int server, const Status& why);
  void WorkerLost(const TaskId& worker, const Status& how);
  void Lose(const Status& why);  // with the lock held
  void BeginTerm();
  void Watch(const std::string& key);
  void SayLoss(const std::string& key);
  void HearEnd(const std::string& key);

  // How they meet, in server_watch_meeting.cc.
  Status AwaitInvitation();
  Status TakeInvitation(const std::string& text);
  Status Invite(const TaskId& worker, std::uint64_t process, std::uint64_t term);
  Status Gather(Deadline deadline);  // in the chief, as what follows
  void SayWhoIsLost() const;
  Result<std::string> AddressOf(int server, std::uint64_t* incarnation) const;
  // Until there is a process for every server: for one that was lost from its loss on, else so
  // long.
  Status FindServers(std::chrono::milliseconds patience);
  Result<std::string> FindServer(int server, std::chrono::milliseconds patience);
  bool IsStillThere(int server, std::uint64_t incarnation);
  Status NobodyCame(int server, const Status& why) const;
  Status FindWorkers();
  Status FindWorker(const TaskId& worker, Status& lost);
  Status TooFewAreLeft(const Status& lost) const;
  // Until all of this term have stopped that are not lost. False: one more is lost, or a server.
  Result<bool> AwaitStopped(Deadline deadline);
  Result<bool> AwaitStop(const TaskId& worker, std::uint64_t process, Deadline deadline);
  Status Announce();

  // How long a wait for a key lasts before it is seen whether there is still something to wait for.
  static constexpr std::chrono::milliseconds kSlice{500};
  // Before what could not be asked is asked again.
  static constexpr std::chrono::milliseconds kPause{200};
  static constexpr std::chrono::milliseconds kLook{20};

  const ClusterConfig config_;
  const std::chrono::milliseconds join_timeout_;
  const std::chrono::milliseconds heartbeat_timeout_;
  const std::chrono::milliseconds collective_timeout_;
  const std::chrono::milliseconds rejoin_grace_;
  const std::chrono::milliseconds worker_patience_;
  const int min_workers_;
  const bool goes_on_;
  const Log log_;
  CoordinationServer* const server_;
  CoordinationClient* const client_;
  const std::function<void(const Status&)> end_calls_;
  const int num_servers_;
  std::vector<std::string> addresses_;  // in the chief; empty: not known yet
  std::vector<TaskId> crew_;
  std::map<TaskId, std::uint64_t> processes_;  // in the chief: the crew's
  int trainings_ = 0;                          // that began
  bool joined_in_training_ = false;

  mutable std::mutex mutex_;  // guards what follows, but the thread
  std::condition_variable changed_;
  bool stopped_ = false;
  Stage stage_ = Stage::kSetup;
  std::uint64_t term_ = 0;
  Status loss_;          // of this term
  bool over_ = false;    // training in this term, as the chief has said
  ps::ServerRoll roll_;  // in the chief
  WorkerRoll workers_;   // in the chief
  std::thread thread_;   // of this term's end
};

}  // namespace cohort
