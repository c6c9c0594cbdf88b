// The parts of a data set that a process of a parameter-server job gets.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <cohort/data/dataset.h>
#include <cohort/strategies/strategy.h>

#include "parameter_server/chief/scheduler_service.h"

namespace cohort::ps {

// A batch under a number that no other of this process has.
struct NumberedBatch {
  std::uint64_t number = 0;
  data::Batch batch;
};

// What a data set for workers needs of the strategy; outlives the data set.
struct Feed {
  std::function<SchedulerClient*()> scheduler;
  std::function<Status()> begin;  // an epoch begins
  std::function<Status()> idle;   // between two splits
  // In a process that trains and hands out: between two splits or rounds, after the last one was
  // acknowledged. Else empty.
  std::function<Status(const EpochKey& epoch, const FinishedSplit& finished)> save;
  std::function<Status()> end;                             // an epoch is over for this worker
  std::function<FinishedSplit(std::int64_t id)> finished;  // with the steps since the last call
  std::function<void(const RoundPart&)> round;  // the batch that Next returns is this part
  // How many of the batches behind the one that Next returns are to be known? Unless none are, it
  // is told then which these are, as far as they are known, and what the number of its own is.
  std::function<int()> looks_ahead;
  std::function<void(std::uint64_t number, std::vector<NumberedBatch> behind)> next;
  // A call has failed, of the above too: OK where the servers are well again and the job goes on,
  // else the reason.
  std::function<Status(const Status&)> go_on;
  std::function<int()> roll_backs;  // so far; what was handed out before the last is void
  data::AllocateBytes allocate;     // where batches are decoded to: IterateOptions
};

// Splits: whole batches, as the scheduler hands them out.
std::unique_ptr<DistributedDataset> MakeSplitDataset(const data::Dataset& dataset, int number,
                                                     Feed feed);
// Rounds: this worker's part of each batch that it takes part in.
std::unique_ptr<DistributedDataset> MakeRoundDataset(const data::Dataset& dataset, int number,
                                                     Feed feed);
// All of it (`begin` runs at the beginning of an epoch), or nothing.
std::unique_ptr<DistributedDataset> MakeWholeDataset(const data::Dataset& dataset,
                                                     std::function<Status()> begin,
                                                     data::AllocateBytes allocate);
std::unique_ptr<DistributedDataset> MakeEmptyDataset();

// What the scheduler must know of it, and what processes compare.
DatasetInfo InfoOf(const data::Dataset& dataset);

}  // namespace cohort::ps
