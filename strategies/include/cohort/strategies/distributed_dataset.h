// DistributedDataset: the batches of a data set as one process of a job sees them, cut among its
// replicas, or handed out on demand under a parameter server. Made by Strategy::Distribute.
//
// Thread rules: the thread that drives the strategy.

#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <cohort/core/status.h>
#include <cohort/data/dataset.h>

namespace cohort {

// This process's part of one global batch: one Batch per local replica, by their order.
struct DistributedBatch {
  std::vector<data::Batch> replicas;
  // Where the batch stands in the epoch's order, for strategies that hand out work; set by
  // DistributedDataset.
  std::int64_t epoch = 0;
  std::int64_t index = 0;
};

struct InputOptions {
  // For Evaluate: the whole data set, once, over the processes that evaluate. Under a parameter
  // server, where training data is handed out on demand to the workers, this is all of it on the
  // chief.
  bool evaluation = false;
  // How examples are divided among the processes. With kFile, kHint and kOwn the order depends on
  // their number, and with kOff each process has all of every batch; none of these goes with
  // virtual_shards or under a parameter server, which hands out splits of one order:
  // InvalidArgument. With kOwn each process gives a data set of its own, that has its share of the
  // examples; the features, the global batch and the remainder are those of the others.
  data::ShardPolicy policy = data::ShardPolicy::kData;
  // On devices whose memory is apart from the host's, under synchronous strategies: with each batch
  // that is handed out the one behind it is read, and copied to the devices, so that its step finds
  // it there (AheadCopy). The devices hold two batches for it, and three where the rows of a batch
  // are asked for ahead. For programs that do not write to a batch's tensors: the copy has what was
  // in them before. A Trainer asks for it (TrainerOptions::copy_ahead). Of an evaluation, and
  // elsewhere, nothing is copied ahead.
  bool copy_ahead = false;
};

// Which share of the examples a process makes under ShardPolicy::kOwn, and of how many; as
// tf.distribute's.
struct InputContext {
  int num_input_pipelines = 1;
  int input_pipeline_id = 0;
};

class DistributedDataset {
 public:
  virtual ~DistributedDataset() = default;
  // Starts an epoch, at batch `first_batch`. Batches that an earlier epoch left are dropped.
  virtual Status BeginEpoch(std::int64_t epoch, std::int64_t first_batch = 0) = 0;
  // The same for the rest of an epoch that was divided otherwise, as Dataset::ResumeAt has it.
  // FailedPrecondition where data is handed out in one order only.
  virtual Status ResumeEpoch(std::int64_t epoch, std::int64_t first_batch,
                             const std::vector<data::EpochDivision>& begun);
  // The next batch, or nullopt when the epoch is over. Under synchronous strategies it is over on
  // every process at the same step; a parameter-server worker is done when the scheduler has no
  // more for it.
  virtual Result<std::optional<DistributedBatch>> Next() = 0;
  // Whether a process that is told to stop may do so now: nothing that was handed out to it alone
  // is left undone, and whoever handed it out knows. False: after some more batches.
  virtual Result<bool> MayStop() { return true; }
  // The batches of an epoch: of each process under synchronous strategies, of all together where
  // one hands them out.
  virtual std::int64_t batches_per_epoch() const = 0;
  // Since this was made: the seconds in which this process waited for examples to be read and made,
  // and in which it began to copy them ahead, in Next or, where a step looks at the batch behind
  // it, in Step. Not for other processes.
  virtual double input_seconds() const = 0;
  // Of this process, see data::BatchIterator::Overtaken.
  virtual std::vector<std::int64_t> Overtaken() const { return {}; }
};

// How much of an epoch the workers have finished, as the process that hands out data knows it.
struct EpochCoverage {
  int dataset = 0;  // the n-th data set that was distributed for training, from 0
  std::int64_t epoch = 0;
  std::int64_t examples = 0;  // of the epoch
  std::int64_t seen = 0;      // in work that was finished: each example counts once
  std::int64_t pieces = 0;    // splits or rounds
  std::int64_t reissued = 0;  // handed out again because a worker was lost
  std::int64_t dropped = 0;   // parts of rounds that came too late (backup workers), of all epochs
  std::int64_t steps = 0;     // of finished work
  double loss = 0;            // their weighted mean
  std::vector<double> metrics;  // likewise
  double seconds = 0;           // from the first request to the end of the epoch
};

}  // namespace cohort
