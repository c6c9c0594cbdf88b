// A synchronous strategy's view of a data set: this process's part of each global batch, cut again
// among its replicas.

#pragma once

#include <functional>
#include <memory>
#include <optional>

#include <cohort/data/dataset.h>
#include <cohort/strategies/strategy.h>

namespace cohort {

// Of `processes`, this is number `process`; it has `replicas`.
std::unique_ptr<DistributedDataset> MakeSynchronousDataset(const data::Dataset& dataset,
                                                           int processes, int process,
                                                           int replicas);
// Of `shards` into which every global batch is cut, this process has `count` from `first` on, each
// a replica's part.
std::unique_ptr<DistributedDataset> MakeShardedDataset(const data::Dataset& dataset, int shards,
                                                       int first, int count);

// The same batches. `tell_next` gets, before each is handed out, the one that comes after it, if
// there is one in the epoch.
using TellNext = std::function<void(const std::optional<DistributedBatch>& next)>;
std::unique_ptr<DistributedDataset> LookAhead(std::unique_ptr<DistributedDataset> batches,
                                              TellNext tell_next);

}  // namespace cohort
