// A parameter server of a job that trains in step: it holds the rows of the sparse tables, which
// the workers of multi_worker_mirrored look up and update (multi_worker/server_rows.h).

#pragma once

#include <memory>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/status.h>
#include <cohort/strategies/strategy.h>

namespace cohort {

// The strategy of a ps task. Blocks until all tasks of config.cluster have met. It does not train:
// Serve returns when the workers are done, or with the reason why they cannot go on.
Result<std::unique_ptr<Strategy>> MakeRowServer(std::string kind, const ClusterConfig& config,
                                                const StrategyOptions& options);

}  // namespace cohort
