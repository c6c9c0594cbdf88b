// The two ends of remote functions: Coordinator over the chief's state, and the workers' loop.

#pragma once

#include <functional>
#include <memory>

#include <cohort/core/status.h>
#include <cohort/strategies/coordinator.h>

#include "parameter_server/coordinator.h"

namespace cohort::ps {

// Opens and, in the end, closes the functions of `state`, which must outlive it.
Result<std::unique_ptr<cohort::Coordinator>> OpenFunctions(Coordinator& state,
                                                           const ScheduleOptions& options);

// Until the coordinator ends. Errors are those of `coordinator`.
// `idle`: runs before each wait for a call.
Status RunFunctions(CoordinatorClient& coordinator, const Functions& functions,
                    const std::function<Status()>& idle = {});

}  // namespace cohort::ps
