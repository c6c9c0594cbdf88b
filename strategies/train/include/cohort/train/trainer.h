// Trainer: the training loop around a Strategy.
//
// Fit is made of public calls only (Bind is the caller's, then BeginTraining, Distribute,
// BeginEpoch, Next, Step), so that a program that needs another loop can copy it and take over;
// examples/custom_loop.cc does.
//
// Every process of the job makes a Trainer and calls the same methods in the same order, whatever
// its role: a process that does not train (a parameter server) serves inside Fit, and the chief
// alone writes checkpoints, TensorBoard events and progress. Errors are the strategy's, the
// dataset's or the file system's, annotated with the step.
//
// Thread rules: one thread.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/data/dataset.h>
#include <cohort/optim/parameter_set.h>
#include <cohort/strategies/strategy.h>

namespace cohort {

class Metrics;  // cohort/core/metrics.h

// How far training is; given to TrainerOptions::progress on the chief after every step.
struct Progress {
  std::int64_t epoch = 0;  // from 0
  std::int64_t epochs = 0;
  std::int64_t batch = 0;  // done in this epoch, by all workers
  std::int64_t batches = 0;
  double loss = 0;  // weighted mean over this epoch so far
  double examples_per_second = 0;
  double exposed_communication = 0;  // share of this epoch's time so far: waiting for others
  double input_wait = 0;             // likewise: for examples to be read and made
  bool epoch_finished = false;       // the last of this epoch
};

struct TrainerOptions {
  int epochs = 1;
  // Batches to an update: gradients of so many add up (Strategy::Accumulate), as if they were one
  // batch; fewer at the end of an epoch.
  int batches_per_step = 1;
  // How Fit's training data is divided among the processes, see InputOptions::policy; Evaluate and
  // Predict divide by record. A checkpoint from within an epoch is resumed by any number of
  // processes, under any policy: where each had an order of its own (data::HasOwnOrder), the
  // epoch's other batches stay what they were, and those after it are divided anew. Only kOwn goes
  // on with as many processes, whose shares are the same. Devices of a process may be others each
  // time.
  data::ShardPolicy policy = data::ShardPolicy::kData;
  // Of Fit's training data on devices whose memory is apart from the host's, see
  // InputOptions::copy_ahead. False: for steps that write to a batch's tensors, and where a batch
  // can't be read before the step of the one in front of it has ended.
  bool copy_ahead = true;
  std::vector<std::string> metric_names;  // of StepResult::metrics, in order
  std::string checkpoint_dir;             // empty: nothing is saved
  int save_every_epochs = 1;              // 0: at the end of training only
  std::int64_t save_every_steps = 0;      // besides; 0: only at the ends of epochs
  int max_to_keep = 5;                    // older checkpoints are deleted; 0: none are
  // Where sparse tables are on servers (parameter_server, hybrid), of the saves while training: one
  // in so many has all rows of the sparse tables, the others only those that changed since the save
  // before. What a checkpoint builds on is kept with it. Sooner, where the changes are more bytes
  // than the rows. 1: all are.
  int full_save_every = 8;
  bool resume = true;  // Fit starts from the newest valid checkpoint, if there is one
  // Where that was trained on other data, or in another order, than Fit is given: false,
  // FailedPrecondition; true, its epoch is begun anew with these, after a warning.
  bool allow_changed_data = false;
  std::uint64_t seed = 0;  // recorded; a checkpoint of another seed is refused
  std::string log_dir;  // TensorBoard event files, <log_dir>/train and <log_dir>/eval; empty: none
  std::function<void(const Progress&)> progress;
  // When it turns true (a signal handler's doing), all processes stop after the same step, the
  // state is saved, and Fit returns Cancelled on all. A save that is being written behind training
  // is finished first; where it is of that step, it is the one. They should then leave by
  // Strategy::Shutdown: ReportError might reach a process that is still saving.
  const std::atomic<bool>* stop = nullptr;
  // Where steps, examples, waits, loss and checkpoints of this process are counted, as
  // src/obs/README.md tells. It must outlive the trainer.
  Metrics* metrics = nullptr;
  Log log;
};

// What an epoch, or an evaluation, came to.
struct EpochResult {
  std::int64_t epoch = 0;
  std::int64_t steps = 0;
  double examples = 0;  // the sum of the weights
  double loss = 0;      // weighted mean
  std::vector<double> metrics;
  double seconds = 0;
  // Where the seconds went, as this process saw them.
  double input_seconds = 0;  // waiting for examples (DistributedDataset::input_seconds)
  double step_seconds = 0;   // compute, communication, update
  // Waiting for others: StepResult's, which is of step_seconds, and, where one process hands out
  // the data, for what to do next.
  double exposed_communication_seconds = 0;
  double checkpoint_seconds = 0;  // saving
};

struct History {
  std::vector<EpochResult> epochs;
  std::vector<EpochResult> evaluations;  // one an epoch where Fit was given validation data
  std::int64_t steps = 0;                // of this run, without those before a resume
  double examples = 0;
  double seconds = 0;
  double exposed_communication_seconds = 0;  // of the epochs
  double input_seconds = 0;                  // likewise
  std::string checkpoint;                    // the newest one written; empty if none

  double examples_per_second() const { return seconds > 0 ? examples / seconds : 0; }
};

// For Predict: one row for each example of `batch`.
using PredictFn = std::function<Result<Tensor>(ReplicaContext&, const data::Batch&)>;

class Trainer {
 public:
  // `strategy` is bound to `parameters` already. Both must outlive the trainer.
  Trainer(Strategy& strategy, ParameterSet& parameters, TrainerOptions options);
  ~Trainer();

  // Trains for the epochs that are left. On devices whose memory is apart the next batch is copied
  // there ahead of its step: steps do not write to batches, or TrainerOptions::copy_ahead is false.
  // Where `validation` is given, evaluates on it after every epoch. Goes back, to the newest
  // checkpoint or to where it began, when a server of sparse tables is lost, or a worker beside
  // such servers (Strategy::Recover): the chief logs that, and step functions are called again for
  // the steps in between; an evaluation that was not made, or not everywhere, is made (again)
  // before training goes on. When this returns, no save is under way any more; where that was so at
  // an error, the error has been reported to the other processes.
  Result<History> Fit(const data::Dataset& training, const StepFn& train_step,
                      const data::Dataset* validation = nullptr, const StepFn& evaluate_step = {});

  // The loss and the metrics over the whole of `dataset`, each example counted once. Under a
  // parameter server the chief evaluates alone, and the others get a result of no examples.
  Result<EpochResult> Evaluate(const data::Dataset& dataset, const StepFn& step);

  // The rows of all examples of an unshuffled `dataset`, in its order, on every process;
  // under a parameter server on the chief, which predicts alone: the others get none.
  Result<Tensor> Predict(const data::Dataset& dataset, const PredictFn& predict);

  // Parameters, optimizer state, step and place in the data. Every process calls; the chief writes,
  // and all return its outcome. A checkpoint is there whole or not at all.
  Status Save();
  // The newest valid checkpoint, on every process. False if there is none.
  Result<bool> Restore();

 private:
  Status StartFrom(const data::Dataset& training);

  struct State;
  class Feeding;
  std::unique_ptr<State> state_;
};

}  // namespace cohort
