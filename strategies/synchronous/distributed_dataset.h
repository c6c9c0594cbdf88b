// A synchronous strategy's view of a data set: this process's part of each global batch, cut again
// among its replicas.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include <cohort/data/dataset.h>
#include <cohort/strategies/distributed_dataset.h>

namespace cohort {

// The part of the data that `part` says; its epoch and first_batch are BeginEpoch's. A batch of it
// is cut among so many replicas: where part.span is more than 1 each of them is a worker of its
// own, else the batch is a process's. InvalidArgument: as Dataset::CountBatches.
Result<std::unique_ptr<DistributedDataset>> MakeSynchronousDataset(const data::Dataset& dataset,
                                                                   data::IterateOptions part,
                                                                   int replicas);

// The batches of a data set, of which the next one may be read before its turn; what is said of
// them is then still of the one in front of it. `batches` must outlive this.
class OneAhead {
 public:
  explicit OneAhead(DistributedDataset& batches) : batches_(batches) {}

  Result<std::optional<DistributedBatch>> Next();
  // The one that Next will return; nullptr: there is none, or its error comes in its turn. Good
  // until Next or Drop.
  DistributedBatch* Peek();
  void Drop() { next_.reset(); }  // an epoch begins
  std::vector<std::int64_t> Overtaken() const;

 private:
  DistributedDataset& batches_;
  std::optional<Result<std::optional<DistributedBatch>>> next_;
  std::vector<std::int64_t> before_next_;  // Overtaken, while nobody has had next_
};

// The same batches. `offer` gets, before each is handed out, a look at the one that comes after it
// in the epoch (nullptr: none, or its error comes in its turn), which is good until it is called
// again: with nothing when this goes, which `offer` must outlive. Nothing is fetched that nobody
// looks at.
using PeekNext = std::function<const DistributedBatch*()>;
std::unique_ptr<DistributedDataset> LookAhead(std::unique_ptr<DistributedDataset> batches,
                                              std::function<void(PeekNext)> offer);

}  // namespace cohort
