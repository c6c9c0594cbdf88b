// What every strategy owes its users, as tests that a kind instantiates.
//
// A world makes the strategies of one job; its processes are threads. N replicas on a global batch
// must leave the same parameters, optimizer state, losses and metrics as plain loops on one thread
// do: compared with ==, for global batches that divide by the replicas and that do not, and for
// short last batches with fewer examples than replicas.
#pragma once

#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include <cohort/core/status.h>
#include <cohort/strategies/strategy.h>

#include <gtest/gtest.h>

namespace cohort::testing {

struct StrategyWorld {
  std::string name;
  int processes = 1;  // that train
  int replicas = 1;   // of each
  bool parameter_server = false;
  // The strategy of process `process`; called by every process, on its own thread. What `options`
  // does not say is the world's.
  std::function<Result<std::unique_ptr<Strategy>>(int process, StrategyOptions options)> make;
  // Runs before and after a job: a fresh set of communicators, servers, ...
  std::function<void()> start = [] {};
  std::function<void()> stop = [] {};

  friend std::ostream& operator<<(std::ostream& out, const StrategyWorld& world) {
    return out << world.name;
  }
};

class StrategyConformance : public ::testing::TestWithParam<StrategyWorld> {
 protected:
  int num_replicas() const { return GetParam().processes * GetParam().replicas; }
  // fn on every process with its strategy; all must return OK.
  void RunJob(const StrategyOptions& options,
              const std::function<Status(int process, Strategy&)>& fn) const;
  // Every process's strategy is InvalidArgument, with `naming` in the text.
  void ExpectRefused(const StrategyOptions& options, const std::string& naming) const;
};

}  // namespace cohort::testing
