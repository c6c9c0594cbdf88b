// Workers that train together while servers hold the tables of their model: the strategy that the
// examples get from `cohort launch --ps`, in processes that a benchmark has started.
//
// Each contestant that communicates is a job of its own, with the same worker processes, and with a
// task in each server process. They meet at a port that worker 0 publishes in the folder.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/strategies/strategy.h>

#include "training_options.h"

namespace cohort {

// On a worker: blocks until all of the job have met, at most options.timeout.
Result<std::unique_ptr<Strategy>> JoinTrainingJob(const TrainingOptions& options,
                                                  const std::string& contestant,
                                                  StrategyOptions how);

// In a server's process: holds the tables of these contestants until their workers have left.
Status ServeTables(const TrainingOptions& options, const std::vector<std::string>& contestants);

}  // namespace cohort
