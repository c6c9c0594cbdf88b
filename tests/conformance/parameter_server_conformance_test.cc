// The strategy suite for the parameter server: with one worker, and with synchronous application
// for any number of them.
#include "conformance/strategy_conformance.h"

#include <cohort/strategies/parameter_server.h>

#include <future>
#include <utility>
#include <vector>

#include "testing/process_cluster.h"

namespace cohort::testing {
namespace {

// Workers, of which worker:0 coordinates, and servers on threads of their own.
class Job {
 public:
  Job(int workers, int servers) : workers_(workers), servers_(servers) {}

  void Start() {
    std::map<TaskId, std::string> addresses;
    for (int w = 0; w < workers_; ++w) {
      addresses[{TaskType::kWorker, w}] = "127.0.0.1:0";
    }
    addresses[{TaskType::kWorker, 0}] = "127.0.0.1:" + std::to_string(UnusedPorts(1)[0]);
    for (int s = 0; s < servers_; ++s) {
      addresses[{TaskType::kPs, s}] = "127.0.0.1:0";
    }
    cluster_ = ClusterSpec(std::move(addresses));
    for (int s = 0; s < servers_; ++s) {
      serving_.push_back(std::async(std::launch::async, [this, s]() -> Status {
        COHORT_ASSIGN_OR_RETURN(const auto strategy, Make({TaskType::kPs, s}, {}));
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
                                                        const StrategyOptions& options) const {
    ClusterConfig config;
    config.cluster = cluster_;
    config.task = task;
    return ParameterServerStrategy::Make(config, options);
  }

 private:
  const int workers_;
  const int servers_;
  ClusterSpec cluster_;
  std::vector<std::future<Status>> serving_;
};

StrategyWorld ParameterServers(int workers, int servers, const std::string& consistency) {
  StrategyWorld world;
  world.name = consistency + std::to_string(workers) + "x" + std::to_string(servers);
  std::erase(world.name, ':');
  world.processes = workers;
  world.parameter_server = true;
  const auto job = std::make_shared<Job>(workers, servers);
  world.start = [job] { job->Start(); };
  world.stop = [job] { job->Stop(); };
  world.make = [job, consistency](int process,
                                  StrategyOptions options) -> Result<std::unique_ptr<Strategy>> {
    options.consistency = OrThrow(Consistency::Parse(consistency));
    COHORT_ASSIGN_OR_RETURN(std::unique_ptr<Strategy> strategy,
                            job->Make({TaskType::kWorker, process}, options));
    return strategy;
  };
  return world;
}

INSTANTIATE_TEST_SUITE_P(
    ParameterServer, StrategyConformance,
    ::testing::Values(ParameterServers(1, 1, "async"), ParameterServers(1, 2, "async"),
                      ParameterServers(1, 2, "ssp:0"), ParameterServers(1, 2, "sync"),
                      ParameterServers(2, 1, "sync"), ParameterServers(3, 2, "sync"),
                      ParameterServers(4, 3, "sync")),
    [](const ::testing::TestParamInfo<StrategyWorld>& world) { return world.param.name; });

}  // namespace
}  // namespace cohort::testing
