// Job: a process's place in a parameter-server job: the services it runs, the ones it knows, and
// what becomes of the others.
//
// A server process listens for frames, the chief runs the coordination service and the coordinator;
// every process joins coordination, where addresses are published. A failure of the job aborts the
// calls of this process's clients.
//
// Thread rules: one thread, that of the strategy.

#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/status.h>
#include <cohort/rpc/coordination.h>
#include <cohort/strategies/strategy.h>

#include "parameter_server/client.h"
#include "parameter_server/coordinator.h"
#include "parameter_server/row_client.h"
#include "parameter_server/server.h"

namespace cohort::ps {

class Retirements;

// Where a server's address is published.
std::string ServerKey(int server);

class Job {
 public:
  ~Job();

  // Blocks until all processes have met.
  static Result<std::unique_ptr<Job>> Join(const ClusterConfig& config,
                                           const StrategyOptions& options);

  const ClusterConfig& config() const { return config_; }
  const std::vector<TaskId>& workers() const { return workers_; }
  int num_servers() const { return num_servers_; }
  bool is_chief() const { return config_.task == chief_; }
  bool is_server() const { return config_.task.type == TaskType::kPs; }
  bool trains() const { return config_.task.type == TaskType::kWorker; }
  int rank() const;  // among the workers

  Coordinator* coordinator() { return coordinator_.get(); }  // in the chief
  const Coordinator* coordinator() const { return coordinator_.get(); }
  CoordinatorClient* coordinator_client() { return coordinator_client_.get(); }  // in a worker
  Server* server() { return server_.get(); }                                     // in a server

  // A client of all servers, not in a server itself. The job owns it.
  Client& Connect(const ModelSpec& spec);
  RowClient* rows() { return row_client_.get(); }  // after Connect, of a model with tables
  // The chief says that the servers' variables have values; others wait for it.
  Status Initialised();
  // The chief's bytes on every process that calls as often.
  Status Broadcast(std::span<std::byte> bytes);

  // What the job knows of the reason for `status`.
  Status Explain(const Status& status) const;
  void ReportError(const Status& error);

  // In a server: until the job is over.
  Status ServeVariables();
  // In the chief: until the workers are done. `look`: a few times a second meanwhile.
  Status Coordinate(const std::function<Status()>& look = {});
  // In the chief, with nothing under way: fn, between two updates. OK without it where that would
  // wait for this process itself: to be asked again after its next step.
  Status BetweenUpdates(const std::function<Status(const Coordinator::Cut& cut)>& fn);
  // Leaves in order. A worker may at any time; the chief ends the servers.
  Status Leave();

 private:
  Job(ClusterConfig config, const StrategyOptions& options);

  Status StartServices();
  Status JoinCoordination();
  Status Publish();
  Status FindServices();
  void Fail(const Status& why);
  void Gone(std::uint64_t incarnation);  // a worker's process
  void StopRetirements();
  bool RetirementsTold() const;

  const ClusterConfig config_;
  const std::chrono::milliseconds join_timeout_;
  const std::chrono::milliseconds heartbeat_timeout_;
  const Log log_;
  const int backup_workers_;
  const std::chrono::milliseconds read_timeout_;
  const TaskId chief_;
  const std::vector<TaskId> workers_;
  const int num_servers_;
  bool left_ = false;
  int broadcasts_ = 0;

  // Services of this process; the state before what serves it.
  std::unique_ptr<Coordinator> coordinator_;
  std::unique_ptr<CoordinationServer> coordination_server_;
  std::unique_ptr<CoordinatorServer> coordinator_server_;
  std::unique_ptr<Server> server_;

  std::vector<std::string> server_addresses_;
  mutable std::mutex failure_mutex_;  // guards failure_, and the pointers against Fail
  Status failure_;
  std::unique_ptr<Client> client_;
  std::unique_ptr<RowClient> row_client_;
  std::unique_ptr<CoordinatorClient> coordinator_client_;
  std::unique_ptr<Retirements> retirements_;  // in the chief
  // Last: its callbacks use the above.
  std::unique_ptr<CoordinationClient> coordination_;
};

}  // namespace cohort::ps
