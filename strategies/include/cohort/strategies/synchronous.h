// The synchronous strategies, made from parts instead of from the environment.
//
// OneDevice, Mirrored and MultiWorkerMirrored are one thing: L replicas in each of W processes, all
// of which apply the same sum of gradients at the same step. OneDevice has one and one, Mirrored L
// and one, MultiWorkerMirrored L and W. For programs that bring a communicator of their own, and
// for tests whose processes are threads.

#pragma once

#include <memory>
#include <string>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/cluster/key_value_store.h>
#include <cohort/comm/communicator.h>
#include <cohort/core/status.h>
#include <cohort/strategies/strategy.h>

namespace cohort {

struct SynchronousParts {
  std::string kind = "mirrored";  // what kind() says
  ClusterConfig cluster;          // what cluster() says
  // Among the W processes, this one's rank deciding which replicas it has: rank w has
  // w*L .. w*L + L-1. nullptr: there is only this process.
  std::unique_ptr<Communicator> communicator;
  // Where the processes' GPUs meet for NCCL; outlives the strategy. nullptr: gradients of GPUs
  // travel by `communicator`. Of no account without one. Its keys carry the communicator's
  // generation: one strategy on a store for each.
  KeyValueStore* store = nullptr;
};

// L is options.num_devices, and equal on all processes. InvalidArgument: an option out of range.
Result<std::unique_ptr<Strategy>> MakeSynchronousStrategy(SynchronousParts parts,
                                                          StrategyOptions options = {});

}  // namespace cohort
