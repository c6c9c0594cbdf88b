// What a program's --devices means.
//
// Thread rules: any thread.

#pragma once

#include <string_view>

#include <cohort/core/status.h>
#include <cohort/strategies/strategy.h>

namespace cohort {

// Sets options.num_devices or options.devices from `text`: a number of replicas on the CPU ("2"),
// or what OpenDevices takes ("cuda:0", "cuda:0/2", "cpu:2"), with "cuda:local" for the GPU whose
// number is this process's among those of its host (ClusterConfig::local_rank): one command line
// gives each of them a GPU of its own. Empty: under `mirrored` every GPU that
// there is, and where there is none, and under any other kind, what options say already. A ps task
// (options.cluster, or the environment's) has no replica: it opens no device. Says in options.log
// what it found. Errors are OpenDevices'.
Status ChooseDevices(std::string_view text, std::string_view kind, StrategyOptions& options);

}  // namespace cohort
