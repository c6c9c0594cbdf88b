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
                                                           int processes, int process, int replicas,
                                                           data::ShardPolicy policy);
// Of `shards` into which every global batch is cut, this process has `count` from `first` on, each
// a replica's part.
std::unique_ptr<DistributedDataset> MakeShardedDataset(const data::Dataset& dataset, int shards,
                                                       int first, int count);

// The same batches. `offer` gets, before each is handed out, a look at the one that comes after it
// in the epoch (nullptr: none, or its error comes in its turn), which is good until it is called
// again: with nothing when this goes, which `offer` must outlive. Nothing is fetched that nobody
// looks at.
using PeekNext = std::function<const DistributedBatch*()>;
std::unique_ptr<DistributedDataset> LookAhead(std::unique_ptr<DistributedDataset> batches,
                                              std::function<void(PeekNext)> offer);

}  // namespace cohort
