#include "conformance/strategy_conformance.h"

#include <cohort/comm/local.h>
#include <cohort/strategies/synchronous.h>

#include <utility>
#include <vector>

namespace cohort::testing {
namespace {

// `processes` threads with local communicators between them; one process has none.
StrategyWorld Synchronous(int processes, int replicas) {
  StrategyWorld world;
  world.name = std::to_string(processes) + "x" + std::to_string(replicas);
  world.processes = processes;
  world.replicas = replicas;
  auto communicators = std::make_shared<std::vector<std::unique_ptr<Communicator>>>();
  world.start = [communicators, processes] { *communicators = MakeLocalCommunicators(processes); };
  world.make = [communicators, processes](int process, StrategyOptions options) {
    SynchronousParts parts;
    if (processes > 1) {
      parts.communicator = std::move((*communicators)[static_cast<std::size_t>(process)]);
    }
    return MakeSynchronousStrategy(std::move(parts), std::move(options));
  };
  return world;
}

INSTANTIATE_TEST_SUITE_P(Synchronous, StrategyConformance,
                         ::testing::Values(Synchronous(1, 1), Synchronous(1, 2), Synchronous(1, 3),
                                           Synchronous(1, 4), Synchronous(2, 1), Synchronous(3, 1),
                                           Synchronous(4, 1), Synchronous(2, 2), Synchronous(3, 2),
                                           Synchronous(2, 3)),
                         [](const ::testing::TestParamInfo<StrategyWorld>& world) {
                           return world.param.name;
                         });

}  // namespace
}  // namespace cohort::testing
