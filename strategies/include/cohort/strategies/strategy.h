// Strategy: how the replicas of a model are kept one model.
//
// The same three calls train under every strategy:
//
//   Bind(parameters, optimizer)     rank 0's values everywhere, names and shapes compared
//   Distribute(dataset)             this process's part of every global batch
//   Step(batch, fn)                 fn on every local replica, gradients combined, values updated
//
// A strategy knows parameters, gradients and an update rule as flat spans, never a model. Gradients
// are the exact weighted mean over the examples of the global batch, also when parts of it are
// short or empty.
//
// Thread rules: one thread drives a strategy. fn runs on the replicas' threads, at the same time
// for different replicas.
//
// What it is made from, given and returns: strategy_options.h, distributed_dataset.h and step.h.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <cohort/cluster/cluster_spec.h>
#include <cohort/comm/communicator.h>
#include <cohort/core/file_system.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>
#include <cohort/data/dataset.h>
#include <cohort/optim/optimizer.h>
#include <cohort/optim/parameter_set.h>
#include <cohort/strategies/distributed_dataset.h>
#include <cohort/strategies/grad_scaler.h>
#include <cohort/strategies/step.h>
#include <cohort/strategies/strategy_options.h>

namespace cohort {

// Where a job that is handed its data by one process is saved: see Strategy::SaveBetweenUpdates.
struct SavePlan {
  std::int64_t every_steps = 0;   // 0: not by steps
  std::int64_t every_epochs = 0;  // 0: not at the ends of epochs
  // Everything before this batch of this epoch is in the parameters, and nothing after.
  std::function<Status(std::int64_t epoch, std::int64_t batch)> save;
  // The way back to the newest whole save, when a server was lost: its values, slots and rows to
  // the servers (LoadTable of every table, SetStep, PushState). Its step; NotFound where there is
  // none, and nothing has been given to the servers. Without it, or a save, a job goes back to
  // where it began. Any other error, also one that is thrown, ends the job, on every process with
  // its code and text; what may pass (Unavailable, DeadlineExceeded, ResourceExhausted, Unknown,
  // Internal, an exception that is no std::logic_error) when it has been called 10 times, within
  // half a minute and what the calls take. So does what is not all of a save: FailedPrecondition.
  std::function<Result<std::int64_t>()> restore;
  // When it turns true the job is saved and ended, see StopWork, where the chief does not train.
  const std::atomic<bool>* stop = nullptr;
};

// How a job goes back after a loss: see Strategy::Recover.
struct WayBack {
  // Called first, when the calls of before have ended and while the rows of tables are still there:
  // ends what saves them.
  std::function<void()> let_go;
  // Asked after that, on the chief, where training began after other steps, or with rows that had
  // been loaded: is there a save that what follows is restored from? If not, or without this, the
  // job is over. Elsewhere training can begin anew with the values of BeginTraining.
  std::function<bool()> to_save;
};

class Strategy {
 public:
  // `kind`: one_device, mirrored, multi_worker_mirrored, parameter_server; empty: from the
  // environment, by the cluster's size and whether it has parameter servers. Blocks until the job's
  // processes have met. Options' environment is read once, here. A cluster that is not what the
  // kind needs is FailedPrecondition, never a world of one: one_device and mirrored refuse a
  // cluster of several tasks, multi_worker_mirrored the lack of one (a cluster of one worker is
  // fine), parameter_server one without ps tasks. An evaluator is outside of its cluster and alone.
  static Result<std::unique_ptr<Strategy>> FromEnv(std::string_view kind = {},
                                                   StrategyOptions options = {});
  // The same for a model that is known: its declarations count, it need not be built yet. Where
  // options.consistency is kAuto and `kind` empty, a model with sparse tables is trained in step in
  // a cluster with ps tasks and no chief task: kHybrid, multi_worker_mirrored with the tables on
  // the servers. All processes, the servers too, give the same model; where one comes to another
  // kind than the chief, all get FailedPrecondition with both. The chief logs what was chosen, and
  // why. `model` is not kept.
  static Result<std::unique_ptr<Strategy>> FromEnv(const ParameterSet& model,
                                                   std::string_view kind = {},
                                                   StrategyOptions options = {});
  // The kind() that FromEnv's strategy would have, for options that depend on it. Meets nobody, and
  // logs nothing.
  static Result<std::string> KindFromEnv(const ParameterSet& model, std::string_view kind = {},
                                         const StrategyOptions& options = {});

  virtual ~Strategy() = default;

  virtual std::string_view kind() const = 0;
  virtual const ClusterConfig& cluster() const = 0;
  virtual bool is_chief() const = 0;
  virtual int num_replicas_in_sync() const = 0;
  virtual int num_local_replicas() const = 0;
  // This process's share of the input; one of one where each makes all of it (parameter servers).
  virtual InputContext input_context() const { return {}; }
  // How Distribute divides a data set for training that it is given with this policy: kAuto is one
  // of the others.
  virtual data::ShardPolicy PolicyFor(const data::Dataset& dataset,
                                      data::ShardPolicy policy) const {
    return dataset.PolicyFor(policy, input_context().num_input_pipelines);
  }
  // Does this process train? False for parameter servers, and for the chief of a parameter-server
  // job, which call Serve.
  virtual bool trains() const { return true; }
  // For a process that does not train: does its work until the job ends, or is stopped, then
  // returns. OK at once for one that does.
  virtual Status Serve() { return {}; }
  // Where one process hands out the data, in that one: nothing more is handed out, and what was is
  // finished; then the job is saved as SaveBetweenUpdates says, and the others' Next is Cancelled
  // with `why`. Does nothing the second time. Elsewhere OK at once. Where work of a process that is
  // gone is left over, and nobody to do it, nothing is saved, with a warning.
  virtual Status StopWork(const std::string& /*why*/) { return {}; }
  // On the process that hands out data to the others, the epochs so far, by data set and epoch.
  // Elsewhere empty.
  virtual std::vector<EpochCoverage> coverage() const { return {}; }

  // Takes part in the job with these parameters. `parameters` must outlive the strategy. All
  // processes must call; FailedPrecondition names the first parameter that differs between two of
  // them. On devices whose memory is apart from the host's, copies of `parameters` are trained:
  // PullState brings their values back.
  virtual Status Bind(ParameterSet& parameters, std::unique_ptr<Optimizer> optimizer) = 0;
  // All processes must call, with equal datasets (compared by fingerprint), or, under
  // ShardPolicy::kOwn, with their shares. The chief logs how examples are divided.
  virtual Result<std::unique_ptr<DistributedDataset>> Distribute(
      const data::Dataset& dataset, const InputOptions& options = {}) = 0;
  // One training step: parameters are updated when this returns. After an error parameters are as
  // before the step, or, where the error says so, the strategy is of no further use.
  virtual Result<StepResult> Step(const DistributedBatch& batch, const StepFn& fn) = 0;
  // A part of the next Step: fn runs, and the gradients stay in this process, where those of the
  // next Accumulate or Step are added to them. The update is then the weighted mean over the
  // examples of all of them, as if they had been one batch. Nothing is sent. Returns loss and
  // metrics of this process's part alone; Step's are those of the whole. An error of either drops
  // what was accumulated. Costs one more gradient arena per replica. Every process calls as often.
  // Unimplemented under a parameter server.
  virtual Result<StepResult> Accumulate(const DistributedBatch& batch, const StepFn& fn);
  // Does this process take part in Evaluate? Under a parameter server only the chief does.
  virtual bool evaluates() const { return true; }
  // fn on every local replica without gradients (ctx.gradients must not be used), results combined
  // over the job.
  virtual Result<StepResult> Evaluate(const DistributedBatch& batch, const StepFn& fn) = 0;

  // For programs that own their model and optimizer. Each span, one per gradient and equal in
  // number and sizes on all processes, holds the mean over this process's examples, and becomes the
  // mean over the job's: sum(weight * span) / sum(weight) over the processes. `weight`: how many
  // examples this process has; 0, with spans of zeros: none.
  virtual Status ReduceGradients(std::span<const std::span<float>> gradients, double weight) = 0;
  // Rank 0's bytes on every process. Under a parameter server only up to 256 KiB, and only before
  // Serve and the first epoch; beyond that what the process has stays.
  virtual Status Broadcast(std::span<std::byte> bytes) = 0;
  // The replicas' values as one; and all of them in replica order along the first axis.
  virtual Result<Mirrored<Tensor>> Reduce(ReduceOp op, const PerReplica<Tensor>& value) = 0;
  virtual Result<Mirrored<Tensor>> Gather(const PerReplica<Tensor>& value) = 0;

  // The update rule given to Bind; nullptr before.
  virtual const Optimizer* optimizer() const = 0;
  // What scales the gradients, equal on all processes; nullptr where nothing does. A program may
  // set its state between steps (a checkpoint's), on every process.
  virtual GradScaler* grad_scaler() { return nullptr; }
  // OK, or why parameters and slots belong to no step: an error came when a step had been applied
  // in part.
  virtual Status intact() const { return {}; }
  // Optimizer state, for checkpoints: slots in the optimizer's order, each as long as
  // parameters.all(). Under a parameter server and on devices whose memory is apart from the
  // host's, PullState brings values and slots from there, and PushState, which every process calls,
  // sends back what a program has written to them (a checkpoint's); elsewhere both do nothing.
  virtual std::span<const std::span<float>> slots() = 0;
  virtual std::int64_t step() const = 0;
  virtual Status SetStep(std::int64_t step) = 0;
  virtual Status PullState() { return {}; }
  virtual Status PushState() { return {}; }
  // The rows of a table of the bound parameters, into a file and back, on the chief: replaces the
  // file whole or not at all; replaces the rows. Where a file comes from does not matter: it can be
  // read under other strategies, and by any number of servers. DataLoss names the table and the
  // file that is damaged. After an error of LoadTable some of the rows may be the file's: load a
  // whole one before training goes on.
  virtual Status SaveTable(int table, FileSystem& files, const std::string& path);
  // `chain`: the file of SaveTable, and those of SaveTableChanges behind it, in order.
  virtual Status LoadTable(int table, FileSystem& files, const std::vector<std::string>& chain);
  // Where others than this process hold the rows, on the chief, between two steps: has them keep
  // what there is now beside what it becomes, and SaveTable and SaveTableChanges have that, until
  // ThawTables. These three may be called on one other thread while training goes on; `saved`: all
  // tables were. False: that cannot be here, and nothing has happened.
  virtual Result<bool> FreezeTables() { return false; }
  virtual Status ThawTables(bool /*saved*/) { return {}; }
  // In `SavePlan::save`, and after FreezeTables: the step of the earlier save that SaveTableChanges
  // writes the changes since; nullopt: there is none, and SaveTable is to write all.
  virtual std::optional<std::int64_t> rows_saved_at() const { return std::nullopt; }
  virtual Status SaveTableChanges(int table, FileSystem& files, const std::string& path);
  // Where one process hands out the data (a parameter server's chief), no other knows a point
  // between two updates: that process calls `plan.save`, which gets the state of such a point while
  // training may go on, from Serve or Next, soon after so many steps or epochs. Returns true, on
  // all processes; before Serve and the first epoch. False: a program that has made a step may
  // save.
  virtual bool SaveBetweenUpdates(SavePlan /*plan*/) { return false; }

  // Between these, which all processes that train call at the same places, the loss of a server of
  // sparse tables, or of a worker that is not the chief, does not end a job whose workers train in
  // step, with tables on servers: calls return Unavailable, and Recover is the way on. The chief
  // keeps a copy of the parameters. EndTraining waits for all; its error, too, may be one that
  // Recover takes. False, and nothing happens: under other strategies, without servers, and with
  // rejoin_grace 0.
  virtual Result<bool> BeginTraining() { return false; }
  virtual Status EndTraining() { return {}; }
  // Has this process come to others that were training, in the place of a lost worker? Then they
  // have gone back (Recover) when Bind returns here, and do what follows with this process: it
  // makes no calls of its own that all must make, before they are at the same place. Until
  // EndTraining.
  virtual bool joined_in_training() const { return false; }
  // After an error of any call in between, on every process: where it is that of a lost process,
  // waits until another one has taken its place (StrategyOptions::rejoin_grace, of a server;
  // worker_patience, of a worker, without which the others go on then), and until all that are left
  // have called: num_replicas_in_sync and input_context may be others than before. Then everything
  // is as Bind left it: parameters are those of BeginTraining, slots have their first values,
  // step() is 0, tables are empty. What follows is the program's, as at its start: the state of a
  // save, Distribute, BeginEpoch. Else returns the error, or why the job is over: nobody came;
  // FailedPrecondition where training neither began at step 0, with tables that nobody had loaded,
  // nor goes back to a save. May block for heartbeat_timeout before, until the loss is known.
  virtual Status Recover(const Status& error, const WayBack& /*way*/) { return error; }

  virtual Status Barrier(std::string_view name) = 0;
  // Writes the flight record of this process's collectives to options.flight_folder; its path. From
  // any thread. FailedPrecondition without a folder, or where there are no collectives.
  virtual Result<std::string> DumpFlightRecord(std::string_view /*reason*/) const {
    return FailedPrecondition("this process takes part in no collectives");
  }
  // Tells the other processes that this one gives up, so that they end with this text too.
  virtual void ReportError(const Status& error) = 0;
  // Leaves the job in order, when all do. The destructor leaves without waiting.
  virtual Status Shutdown() = 0;
};

}  // namespace cohort
