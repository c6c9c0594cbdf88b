// ServerWatch: the servers of a job whose workers train in step: which process is in whose place,
// and what the workers do when one is lost.
//
// The chief's coordination service finds a loss; the chief then says so to the other workers under
// a key of the service, and each worker's calls end with that error. All stop, whatever they were
// at, and meet again when there is a process for every server.
//
// So that all come to the same conclusion, time is cut into terms, which every worker counts alike.
// A term of training ends in one of two ways, of which the chief says one, once: a server was lost,
// or training is over. A server that is lost when it is over, or before it begins, ends the job.
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
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/rpc/coordination.h>
#include <cohort/strategies/strategy_options.h>

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

  // Whether this job can go on without a server until another process takes its place.
  static bool GoesOn(const ClusterConfig& config, const StrategyOptions& options);

  // Counts up, equally on all workers. From 0, which is before training.
  std::uint64_t term() const;
  // Of this term; OK: none is known.
  Status loss() const;

  // As Membership's; EndTraining when this process knows that the others have done their work (the
  // chief), or may know it (the others).
  bool BeginTraining();
  Status EndTraining();
  Status CheckLoss(const Status& error);

  // After CheckLoss, on all workers: until all have called, and there is a process for every
  // server. Then another term has begun. On an error the job is over.
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
  void Lose(const Status& why);  // with the lock held
  void BeginTerm();
  void Watch(const std::string& key);
  void SayLoss(const std::string& key);
  void HearEnd(const std::string& key);
  Result<std::string> AddressOf(int server, std::uint64_t* incarnation) const;
  // Until there is a process for every server: for one that was lost from its loss on, else so
  // long.
  Status FindServers(std::chrono::milliseconds patience);
  Result<std::string> FindServer(int server, std::chrono::milliseconds patience);
  bool IsStillThere(int server, std::uint64_t incarnation);
  Status NobodyCame(int server, const Status& why) const;

  const ClusterConfig config_;
  const std::chrono::milliseconds join_timeout_;
  const std::chrono::milliseconds heartbeat_timeout_;
  const std::chrono::milliseconds collective_timeout_;
  const std::chrono::milliseconds rejoin_grace_;
  const bool goes_on_;
  const Log log_;
  CoordinationServer* const server_;
  CoordinationClient* const client_;
  const std::function<void(const Status&)> end_calls_;
  const int num_servers_;
  std::vector<std::string> addresses_;  // in the chief; empty: not known yet

  mutable std::mutex mutex_;  // guards what follows, but the thread
  std::condition_variable changed_;
  bool stopped_ = false;
  Stage stage_ = Stage::kSetup;
  std::uint64_t term_ = 0;
  Status loss_;          // of this term
  bool over_ = false;    // training in this term, as the chief has said
  ps::ServerRoll roll_;  // in the chief
  std::thread thread_;   // of this term's end
};

}  // namespace cohort
