// Job: a parameter-server job within this process, for the suites: its servers are threads, and a
// test makes the strategies of the other tasks, each on a thread of its own.
#pragma once

#include <cohort/strategies/parameter_server.h>

#include <functional>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/process_cluster.h"

namespace cohort::testing {

// worker:0 coordinates where there is no chief.
class Job {
 public:
  Job(int workers, int servers, const Partitioner& partitioner = {},
      StrategyOptions of_servers = {}, bool chief = false)
      : workers_(workers),
        servers_(servers),
        partitioner_(partitioner),
        of_servers_(std::move(of_servers)),
        coordinates_{chief ? TaskType::kChief : TaskType::kWorker, 0} {}

  void Start() {
    std::map<TaskId, std::string> addresses;
    for (int w = 0; w < workers_; ++w) {
      addresses[{TaskType::kWorker, w}] = "127.0.0.1:0";
    }
    addresses[coordinates_] = "127.0.0.1:" + std::to_string(UnusedPorts(1)[0]);
    for (int s = 0; s < servers_; ++s) {
      addresses[{TaskType::kPs, s}] = "127.0.0.1:0";
    }
    cluster_ = ClusterSpec(std::move(addresses));
    for (int s = 0; s < servers_; ++s) {
      serving_.push_back(std::async(std::launch::async, [this, s]() -> Status {
        COHORT_ASSIGN_OR_RETURN(const auto strategy, Make({TaskType::kPs, s}, of_servers_));
        COHORT_RETURN_IF_ERROR(strategy->Serve());
        return strategy->Shutdown();
      }));
    }
  }
  void Stop() {
    for (std::future<Status>& served : serving_) {
      EXPECT_EQ(served.get(), OkStatus());
    }
    serving_.clear();
  }
  Result<std::unique_ptr<ParameterServerStrategy>> Make(const TaskId& task,
                                                        StrategyOptions options) const {
    ClusterConfig config;
    config.cluster = cluster_;
    config.task = task;
    options.partitioner = partitioner_;
    return ParameterServerStrategy::Make(config, options);
  }

 private:
  const int workers_;
  const int servers_;
  const Partitioner partitioner_;
  const StrategyOptions of_servers_;
  const TaskId coordinates_;
  ClusterSpec cluster_;
  std::vector<std::future<Status>> serving_;
};

// What the tasks of a job came to; what came to nothing is an error of the test, and here empty.
template <typename Outcome>
struct JobOutcome {
  Outcome chief;
  std::vector<Outcome> workers;
};

// `run` gets the strategy of a chief, and of each worker, on a thread of its own; it has servers.
template <typename Outcome>
JobOutcome<Outcome> RunWithChief(int workers, int servers, const StrategyOptions& options,
                                 const std::function<Result<Outcome>(Strategy&)>& run) {
  Job job(workers, servers, {}, {}, /*chief=*/true);
  job.Start();
  const auto begin = [&](const TaskId& id) {
    return std::async(std::launch::async, [&, id]() -> Result<Outcome> {
      COHORT_ASSIGN_OR_RETURN(const auto strategy, job.Make(id, options));
      Result<Outcome> outcome = run(*strategy);
      if (!outcome.ok()) {
        strategy->ReportError(outcome.status());
      }
      return outcome;
    });
  };
  const auto end = [](std::future<Result<Outcome>>& task) {
    Result<Outcome> outcome = task.get();
    EXPECT_EQ(outcome.status(), OkStatus());
    return outcome.ok() ? *std::move(outcome) : Outcome();
  };
  std::future<Result<Outcome>> chief = begin({TaskType::kChief, 0});
  std::vector<std::future<Result<Outcome>>> training;
  for (int w = 0; w < workers; ++w) {
    training.push_back(begin({TaskType::kWorker, w}));
  }
  JobOutcome<Outcome> outcome;
  for (std::future<Result<Outcome>>& worker : training) {
    outcome.workers.push_back(end(worker));
  }
  outcome.chief = end(chief);
  job.Stop();
  return outcome;
}

}  // namespace cohort::testing
