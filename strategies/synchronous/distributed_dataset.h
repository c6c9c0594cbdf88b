// A synchronous strategy's view of a data set: this process's part of each global batch, cut again
// among its replicas.

#pragma once

#include <memory>

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

}  // namespace cohort
