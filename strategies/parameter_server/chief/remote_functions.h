// The two ends of remote functions: Coordinator over the chief's state, and the workers' loop.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>
#include <cohort/strategies/coordinator.h>

#include "parameter_server/chief/scheduler_service.h"

namespace cohort::ps {

// Opens and, in the end, closes the functions of `state`, which must outlive it. `recover`: as
// Scheduler::OpenFunctions has it. `save`: what its Save is; empty: FailedPrecondition.
using SaveCalls = std::function<Status(const cohort::Coordinator::SaveFn& save, Deadline deadline)>;
Result<std::unique_ptr<cohort::Coordinator>> OpenFunctions(Scheduler& state,
                                                           const ScheduleOptions& options,
                                                           Scheduler::Recover recover = {},
                                                           SaveCalls save = {});

// What a worker's strategy does about calls.
struct CallHooks {
  // Before each wait for a call.
  std::function<Status()> idle;
  // Before a call that was handed out in that epoch of the servers. False: what it did would be
  // undone, or has been, and it runs again elsewhere; it is not run.
  std::function<Result<bool>(std::uint64_t epoch)> begin;
};

// Until the coordinator ends. Functions run on this thread, one at a time; calls are fetched, and
// results told, on two others meanwhile. Errors are those of `scheduler` and of the hooks.
// `pipeline`: for which this worker makes data sets.
Status RunFunctions(SchedulerClient& scheduler, const Functions& functions,
                    const InputPipeline& pipeline = {}, const CallHooks& hooks = {});

}  // namespace cohort::ps
