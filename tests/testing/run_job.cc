#include "testing/run_job.h"

#include <cohort/comm/local.h>
#include <cohort/strategies/synchronous.h>

#include <utility>

#include "testing/run_ranks.h"

namespace cohort::testing {

void RunJob(const World& world, const StrategyOptions& options,
            const std::function<Status(int, Strategy&)>& fn) {
  auto communicators = MakeLocalCommunicators(world.processes);
  ExpectAllOk(RunRanks(world.processes, [&](int process) -> Status {
    StrategyOptions mine = options;
    mine.num_devices = world.devices;
    SynchronousParts parts;
    if (world.processes > 1) {
      parts.communicator = std::move(communicators[static_cast<std::size_t>(process)]);
    }
    COHORT_ASSIGN_OR_RETURN(const auto strategy, MakeSynchronousStrategy(std::move(parts), mine));
    COHORT_RETURN_IF_ERROR(fn(process, *strategy));
    return strategy->Shutdown();
  }));
}

}  // namespace cohort::testing
