#include "training_job.h"

#include <sys/prctl.h>

#include <chrono>
#include <csignal>
#include <functional>
#include <future>
#include <map>
#include <utility>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/cluster/folder_store.h>
#include <cohort/optim/parameter_set.h>

#include "port_reservation.h"
#include "training_models.h"

namespace cohort {
namespace {

// The addresses of all, of which only worker 0's need be known.
ClusterSpec ClusterAt(const TrainingOptions& options, const std::string& meeting) {
  std::map<TaskId, std::string> addresses;
  for (int w = 0; w < options.workers; ++w) {
    addresses[{TaskType::kWorker, w}] = w == 0 ? meeting : "127.0.0.1:0";
  }
  for (int s = 0; s < options.servers(); ++s) {
    addresses[{TaskType::kPs, s}] = "127.0.0.1:0";
  }
  return ClusterSpec(addresses);
}

// Worker 0 chooses where they meet, the others learn it.
Result<std::string> MeetingOf(const TrainingOptions& options, const std::string& contestant,
                              const TaskId& task) {
  FolderStore store(options.folder);
  const std::string key = "meeting of " + contestant;
  if (task != TaskId{TaskType::kWorker, 0}) {
    return store.Wait(key, DeadlineAfter(options.timeout));
  }
  COHORT_ASSIGN_OR_RETURN(PortReservation port, PortReservation::Make(1));
  std::string meeting = "127.0.0.1:" + std::to_string(port.ports()[0]);
  COHORT_RETURN_IF_ERROR(store.Insert(key, meeting));
  return meeting;  // released: it listens there next
}

Result<std::unique_ptr<Strategy>> Join(const TrainingOptions& options,
                                       const std::string& contestant, const TaskId& task,
                                       StrategyOptions how) {
  COHORT_ASSIGN_OR_RETURN(const std::string meeting, MeetingOf(options, contestant, task));
  ClusterConfig config;
  config.cluster = ClusterAt(options, meeting);
  config.task = task;
  config.source = "cohort bench";
  how.cluster = std::move(config);
  how.join_timeout = options.timeout;
  how.rejoin_grace = std::chrono::milliseconds(0);  // who is lost ends the measurement
  return Strategy::FromEnv("multi_worker_mirrored", std::move(how));
}

Status ServeOne(const TrainingOptions& options, const std::string& contestant) {
  ParameterSet parameters;
  COHORT_ASSIGN_OR_RETURN(
      const auto model,
      MakeTrainingModel({.name = options.model, .sizes = options.sizes}, parameters));
  parameters.Build();
  StrategyOptions how;
  how.communication.timeout = options.timeout;
  how.communication.transport = options.transport;
  COHORT_ASSIGN_OR_RETURN(
      const auto strategy,
      Join(options, contestant, {TaskType::kPs, options.server}, std::move(how)));
  const auto serve = [&]() -> Status {
    COHORT_RETURN_IF_ERROR(strategy->Bind(parameters, model->MakeOptimizer()));
    COHORT_RETURN_IF_ERROR(strategy->Serve());
    return strategy->Shutdown();
  };
  const Status status = serve();
  if (!status.ok()) {
    strategy->ReportError(status);
  }
  return status;
}

}  // namespace

Result<std::unique_ptr<Strategy>> JoinTrainingJob(const TrainingOptions& options,
                                                  const std::string& contestant,
                                                  StrategyOptions how) {
  return Join(options, contestant, {TaskType::kWorker, options.rank}, std::move(how));
}

Status ServeTables(const TrainingOptions& options, const std::vector<std::string>& contestants) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::vector<std::future<Status>> jobs;
  for (const std::string& contestant : contestants) {
    jobs.push_back(std::async(std::launch::async, ServeOne, std::cref(options), contestant));
  }
  Status status;
  for (std::future<Status>& job : jobs) {
    const Status of_it = job.get();
    status = status.ok() ? of_it : status;
  }
  return status;
}

}  // namespace cohort
