// The two ends of remote functions: Coordinator over the chief's state, and the workers' loop.

#pragma once

#include <functional>
#include <memory>

#include <cohort/core/status.h>
#include <cohort/strategies/coordinator.h>

#include "parameter_server/chief/coordinator_service.h"

namespace cohort::ps {

// Opens and, in the end, closes the functions of `state`, which must outlive it. `recover`: as
// Coordinator::OpenFunctions has it.
Result<std::unique_ptr<cohort::Coordinator>> OpenFunctions(Coordinator& state,
                                                           const ScheduleOptions& options,
                                                           Coordinator::Recover recover = {});

// Until the coordinator ends. Functions run on this thread, one at a time; calls are fetched, and
// results told, on two others meanwhile. Errors are those of `coordinator`.
// `pipeline`: for which this worker makes data sets. `idle`: runs before each wait for a call.
Status RunFunctions(CoordinatorClient& coordinator, const Functions& functions,
                    const InputPipeline& pipeline = {}, const std::function<Status()>& idle = {});

}  // namespace cohort::ps
