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

#pragma once

#include <chrono>
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
#include <cohort/core/environment.h>
#include <cohort/core/file_system.h>
#include <cohort/core/log.h>
#include <cohort/core/status.h>
#include <cohort/core/tensor.h>
#include <cohort/data/dataset.h>
#include <cohort/device/device.h>
#include <cohort/optim/gradient_sink.h>
#include <cohort/optim/optimizer.h>
#include <cohort/optim/parameter_set.h>
#include <cohort/strategies/bucket_hook.h>
#include <cohort/strategies/consistency.h>
#include <cohort/strategies/grad_scaler.h>
#include <cohort/strategies/partitioner.h>
#include <cohort/strategies/start_policy.h>

namespace cohort {

class NcclApi;  // comm/nccl/nccl_api.h

// How replicas' gradients become one.
enum class LossScale {
  kGlobalMean,   // the mean over the examples of the global batch, exactly (default)
  kReplicaMean,  // the mean over replicas of each one's mean: DistributedDataParallel's rule
  kSum,          // the sum; the loss is already divided by the global batch: tf.distribute's rule
};

// How the processes of a job reach each other; named as in tf.distribute.
struct CommunicationOptions {
  // "auto": shared memory among those on one host, TCP between hosts (comm/hierarchical.h); TCP
  // alone where a host's processes cannot share memory; under mpirun, MPI messages. "shm" (all on
  // one host) or "tcp": that, or an error. So it is between workers and parameter servers.
  std::string implementation = "auto";
  // How processes add gradients: "auto", or one of Communicator::algorithms, "ring" for example.
  // "one_pass", of two processes that share memory: each reads the other's as it updates, where
  // nothing else has use for the sums. Not with virtual_shards, which say how.
  std::string algorithm = "auto";
};

// What becomes of a job that loses a parameter server, when another process takes its place.
enum class ServerLoss {
  kRollBack,  // all servers, and the place in the data, go back to the last save
  // The one that was lost gets its part of the last save, the others go on as they are: what it had
  // been sent since is lost, and counted. With asynchronous application only.
  kPartial,
  // Every server's part is on its successor, too, and a push counts when both have it. The one that
  // was lost gets its part from there: nothing rolls back, and no update is lost, or applied twice.
  // Where both are lost, as kPartial. Pushes travel twice, and servers hold twice as much. With
  // asynchronous application only, and two servers or more.
  kReplica,
};
std::string_view ServerLossName(ServerLoss loss);  // "kRollBack"

// How parameters travel between workers and servers, which hold float32: kFloat32, kFloat16,
// kBFloat16 or kUInt8 (256 values a scale). What a gradient loses is added to the worker's next.
struct ServerWire {
  DType push = DType::kFloat32;
  DType pull = DType::kFloat32;
};

struct StrategyOptions {
  int num_devices = 1;  // local replicas: logical CPU devices of this process
  // Instead: the device of each local replica (OpenDevices); one under a parameter server. One that
  // stands here several times is shared by as many replicas, and holds one copy of the model. In a
  // synchronous job of several processes the devices of all share the host's memory, or none do.
  std::vector<std::shared_ptr<Device>> devices;
  LossScale loss_scale = LossScale::kGlobalMean;
  // For models that compute in float16: gradients are scaled, and a step whose gradients overflow
  // is skipped, by all replicas together. The decision is each process's own, from the sums that
  // all have; so the update begins when all of them are there. Not with make_bucket_hook, nor for
  // models with sparse tables.
  std::optional<GradScalerOptions> grad_scaler;
  // Gradients travel in buckets of about this size; the first is small, so that communication
  // starts early. 0: 25 MiB at first, then what the measured latency and bandwidth ask for.
  std::int64_t first_bucket_bytes = std::int64_t{1} << 20;
  std::int64_t bucket_bytes = 0;
  // What becomes of a bucket instead of an all-reduce: see bucket_hook.h. Equal on all processes.
  std::function<std::unique_ptr<BucketHook>()> make_bucket_hook;
  // Not 0: results are the same bits for every number of processes and devices that divides it. The
  // global batch is cut into this many shards, each of which is a replica to the step function,
  // whoever runs it; their gradients are added in one tree. A power of two. See README.md for the
  // cost.
  int virtual_shards = 0;
  // A step's update begins when all of its gradients are there, so that a failure leaves each
  // process with the whole step or nothing of it. Otherwise buckets are applied as they arrive,
  // while others are on their way. Recover trains so.
  bool whole_updates = false;
  std::chrono::milliseconds collective_timeout{120'000};
  std::chrono::milliseconds join_timeout{300'000};
  std::chrono::milliseconds heartbeat_timeout{10'000};
  // How long a job waits for another process in the place of a parameter server that was lost, to
  // go on from the last save with it. 0: the job ends.
  std::chrono::milliseconds rejoin_grace{60'000};
  ServerLoss server_loss = ServerLoss::kRollBack;
  // How often the chief looks whether some servers get more gradients of rows than others, and
  // moves buckets of the sparse tables from the busiest to the idlest while training goes on; 0:
  // never. With asynchronous or boundedly stale application, and kRollBack, only.
  std::chrono::milliseconds balance_interval{0};
  // Where the chief task of a parameter-server job keeps its journal, the checkpoint folder: when
  // it is lost, the others wait as long for another process in its place, and the job goes on from
  // the last save. Set on every process. Empty, or where worker:0 is the chief: the job ends.
  std::string journal_folder;
  ServerWire server_wire;
  // How parameters are cut among parameter servers, and which workers such a job waits for before
  // it begins. Equal on all processes.
  Partitioner partitioner;
  StartPolicy start;
  CommunicationOptions communication;
  // How gradients in the memory of several GPUs become one sum; the names are those of
  // tf.distribute's CrossDeviceOps. "nccl": by NCCL, among the GPUs of all processes, each of which
  // belongs to one of them; Bind is FailedPrecondition, and says why, where that cannot be. Within
  // a process, "hierarchical_copy": in a tree of pairs, and back the same way;
  // "reduction_to_one_device": all to the first replica's, and from there to all, not with
  // virtual_shards. "auto": nccl where it can be and nothing else has a say in the order of sums,
  // else hierarchical_copy; the chief logs which. Equal on all processes. Of no account where
  // gradients are in the host's memory, but for nccl, which is refused.
  std::string cross_device_ops = "auto";
  // Connections between two processes, over TCP: see TcpOptions. Equal on all.
  int rails = 1;
  // Where flight records go (see comm/README.md) when a collective fails, and on DumpFlightRecord;
  // empty: nowhere.
  std::string flight_folder;
  std::string mpi_implementation = "cohort";  // see comm/mpi.h
  Consistency consistency;                    // of a parameter server
  int intra_op_threads = 0;  // per replica; 0: the cores, shared among the local replicas
  std::function<std::unique_ptr<Stream>()> make_stream;  // test seam; default: MakeInlineStream
  // Test seam: NCCL as a device's rank calls it; default: its library.
  std::function<std::shared_ptr<NcclApi>(const Device& device)> make_nccl;
  std::optional<Environment> environment;  // where FromEnv looks; none: this process's
  // Who takes part, where the program has resolved it itself (from flags); else FromEnv does, from
  // the environment.
  std::optional<ClusterConfig> cluster;
  Log log;
};

// Where FromEnv looks.
Environment EnvironmentOf(const StrategyOptions& options);

// What a step function is given: the replica is an argument, never a thread-local.
struct ReplicaContext {
  int replica = 0;  // 0 .. num_replicas-1 over the whole job
  int num_replicas = 1;
  std::int64_t step = 0;  // of this strategy, from 1
  // In `device`'s memory. Read only during the step, but for those that are not trainable, such as
  // running averages: local replica 0 may write these, and those of process 0 then hold on
  // all.
  ParameterSet& parameters;
  GradientSink& gradients;
  Stream& stream;                                // the replica's compute stream
  int intra_op_threads = 1;                      // that its operations may use
  int local_replica = 0;                         // among those of this process
  std::shared_ptr<Device> device = CpuDevice();  // whose memory `parameters` and gradients are in
};

// What a step function returns of its part: sums, so that parts add up.
struct ReplicaResult {
  double loss_sum = 0;  // mean loss * weight
  double weight = 0;    // examples, or whatever the mean was taken over
  // As many on every replica and step, and at most 28; e.g. correct predictions. Longer ones, say
  // the counts of an AUC, go through Strategy::Reduce.
  std::vector<double> metric_sums;
};

// Not called for a part without examples, which contributes nothing. An error or an exception gives
// the step up on every process: the others' Step returns it with this task's name, this one's
// returns the error or throws the exception on.
using StepFn = std::function<Result<ReplicaResult>(ReplicaContext&, const data::Batch&)>;

struct StepResult {
  double loss = 0;              // weighted mean over the global batch
  double weight = 0;            // of the global batch; 0: nothing was updated
  std::vector<double> metrics;  // weighted means
  std::int64_t step = 0;
  // The gradients overflowed (StrategyOptions::grad_scaler): values and slots are as before. The
  // step counts.
  bool skipped = false;
  // Of this process, for this step: how long it waited for the others after its own backward passes
  // had ended. What was hidden behind them does not count.
  double exposed_communication_seconds = 0;
  // Under a parameter server: the most updates by others that a part of the gradient met which its
  // values did not have.
  std::int64_t staleness = 0;
};

// One value per local replica; and one value that all replicas share. Distinct types on purpose.
template <typename T>
struct PerReplica {
  std::vector<T> values;
};
template <typename T>
struct Mirrored {
  T value;
};

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
  data::ShardPolicy policy = data::ShardPolicy::kAuto;
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
  // every process at the same step; a parameter-server worker is done when the coordinator has no
  // more for it.
  virtual Result<std::optional<DistributedBatch>> Next() = 0;
  // Whether a process that is told to stop may do so now: nothing that was handed out to it alone
  // is left undone, and whoever handed it out knows. False: after some more batches.
  virtual Result<bool> MayStop() { return true; }
  // The batches of an epoch: of each process under synchronous strategies, of all together where
  // one hands them out.
  virtual std::int64_t batches_per_epoch() const = 0;
  // Since this was made: the seconds in which this process waited for examples to be read and made,
  // in Next or, where a step looks at the batch behind it, in Step. Not for other processes.
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

// Where a job that is handed its data by one process is saved: see Strategy::SaveBetweenUpdates.
struct SavePlan {
  std::int64_t every_steps = 0;   // 0: not by steps
  std::int64_t every_epochs = 0;  // 0: not at the ends of epochs
  // Everything before this batch of this epoch is in the parameters, and nothing after.
  std::function<Status(std::int64_t epoch, std::int64_t batch)> save;
  // The way back to the newest whole save, when a server was lost: its values, slots and rows to
  // the servers (LoadTable, SetStep, PushState). Its step; NotFound where there is none. Without
  // it, or a save, a job goes back to where it began.
  std::function<Result<std::int64_t>()> restore;
  // When it turns true the job is saved and ended, see StopWork, where the chief does not train.
  const std::atomic<bool>* stop = nullptr;
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

  virtual ~Strategy() = default;

  virtual std::string_view kind() const = 0;
  virtual const ClusterConfig& cluster() const = 0;
  virtual bool is_chief() const = 0;
  virtual int num_replicas_in_sync() const = 0;
  virtual int num_local_replicas() const = 0;
  // This process's share of the input; one of one where each makes all of it (parameter servers).
  virtual InputContext input_context() const { return {}; }
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
  // read under other strategies, and by any number of servers.
  virtual Status SaveTable(int table, FileSystem& files, const std::string& path);
  // `chain`: the file of SaveTable, and those of SaveTableChanges behind it, in order.
  virtual Status LoadTable(int table, FileSystem& files, const std::vector<std::string>& chain);
  // In `SavePlan::save`: the step of the earlier save that SaveTableChanges writes the changes
  // since; nullopt: there is none, and SaveTable is to write all.
  virtual std::optional<std::int64_t> rows_saved_at() const { return std::nullopt; }
  virtual Status SaveTableChanges(int table, FileSystem& files, const std::string& path);
  // Where one process hands out the data (a parameter server's chief), no other knows a point
  // between two updates: that process calls `plan.save`, which gets the state of such a point while
  // training may go on, from Serve or Next, soon after so many steps or epochs. Returns true, on
  // all processes; before Serve and the first epoch. False: a program that has made a step may
  // save.
  virtual bool SaveBetweenUpdates(SavePlan /*plan*/) { return false; }

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
