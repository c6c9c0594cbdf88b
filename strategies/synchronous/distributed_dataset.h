// A synchronous strategy's view of a data set: this process's part of each global batch, cut again
// among its replicas.

#pragma once

#include <functional>
#include <memory>
#include <optional>

#include <cohort/data/dataset.h>
#include <cohort/strategies/distributed_dataset.h>

namespace cohort {

// The part of the data that `part` says; its epoch and first_batch are BeginEpoch's. A batch of it
// is cut among so many replicas: where part.span is more than 1 each of them is a worker of its
// own, else the batch is a process's. InvalidArgument: as Dataset::CountBatches.
Result<std::unique_ptr<DistributedDataset>> MakeSynchronousDataset(const data::Dataset& dataset,
                                                                   data::IterateOptions part,
                                                                   int replicas);

// The same batches. `offer` gets, before each is handed out, a look at the one that comes after it
// in the epoch (nullptr: none, or its error comes in its turn), which is good until it is called
// again: with nothing when this goes, which `offer` must outlive. Nothing is fetched that nobody
// looks at.
using PeekNext = std::function<const DistributedBatch*()>;
std::unique_ptr<DistributedDataset> LookAhead(std::unique_ptr<DistributedDataset> batches,
                                              std::function<void(PeekNext)> offer);

}  // namespace cohort
