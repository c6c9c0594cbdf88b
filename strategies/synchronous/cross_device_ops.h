// CrossDeviceOps: which way gradients of several devices take to their sum, chosen by name, or by
// what is there (StrategyOptions::cross_device_ops).
//
// NCCL takes a rank for each GPU. It is chosen where every replica is on a GPU that no other
// process uses, and where nothing else has a say: hooks, but for what rounds, see sums in the
// host's memory, virtual shards add in an order of their own, and so does an all-reduce algorithm
// that was asked for. All processes come to the same choice.

#pragma once

#include <memory>
#include <span>
#include <string>

#include <cohort/cluster/key_value_store.h>
#include <cohort/comm/communicator.h>
#include <cohort/core/status.h>
#include <cohort/strategies/bucket_hook.h>
#include <cohort/strategies/strategy_options.h>

#include "synchronous/device_copy.h"
#include "synchronous/device_sums.h"
#include "synchronous/nccl_sums.h"

namespace cohort {

struct CrossDeviceOps {
  DeviceSums::Way way = DeviceSums::Way::kTree;
  std::unique_ptr<NcclSums> nccl;  // nullptr: by `way`, and among processes by their communicator
};

struct CrossDeviceParts {
  std::span<const std::unique_ptr<DeviceCopy>>
      copies;                        // of this process; they outlive what is made
  Communicator* job = nullptr;       // among processes; nullptr: there is one
  KeyValueStore* store = nullptr;    // where they meet
  const BucketHook* hook = nullptr;  // of the processes' sums; nullptr: none
  int binding = 0;                   // how many were made before this one
};

// InvalidArgument: a name that is none, or one that does not go with another option.
Status CheckCrossDeviceOps(const StrategyOptions& options);

// In Bind, on all processes, which have compared their options. Where NCCL was asked for and cannot
// be, FailedPrecondition on all of them says why; else one line in the chief's log says what was
// chosen.
Result<CrossDeviceOps> ChooseCrossDeviceOps(const StrategyOptions& options,
                                            const CrossDeviceParts& parts);

}  // namespace cohort
