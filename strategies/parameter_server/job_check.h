// CheckJob: can this cluster be a parameter-server job with these options? Before anything is
// started, and the same on every process: a job that cannot be says so everywhere, at once.
//
// Thread rules: a pure function.

#pragma once

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/status.h>
#include <cohort/strategies/strategy.h>

namespace cohort::ps {

// InvalidArgument, with what may be done, for the first thing that does not fit.
Status CheckJob(const ClusterConfig& config, const StrategyOptions& options);

}  // namespace cohort::ps
