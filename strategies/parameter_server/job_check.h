// CheckJob: can this cluster be a parameter-server job with these options? Before anything is
// started, and the same on every process: a job that cannot be says so everywhere, at once.
//
// Thread rules: pure functions.

#pragma once

#include <cstdint>
#include <string>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/core/status.h>
#include <cohort/strategies/strategy.h>

namespace cohort::ps {

// InvalidArgument, with what may be done, for the first thing that does not fit.
Status CheckJob(const ClusterConfig& config, const StrategyOptions& options);

// The servers' epoch that one of them has published under `key`, from 1. DataLoss, which names key
// and value: it is none, or the last there can be.
Result<std::uint64_t> ParseEpoch(const std::string& key, const std::string& value);

}  // namespace cohort::ps
