#include <algorithm>
#include <cmath>
#include <exception>
#include <thread>
#include <utility>

#include <cohort/core/random.h>
#include <cohort/core/thread_pool.h>
#include <cohort/device/range.h>
#include <cohort/optim/gradients.h>
#include <cohort/strategies/parameter_server.h>

#include "parameter_server/chief/remote_functions.h"
#include "parameter_server/dataset.h"
#include "parameter_server/device_replica.h"
#include "parameter_server/job.h"
#include "parameter_server/local_sink.h"
#include "parameter_server/remote_rows.h"
#include "parameter_server/rows/bucket_balance.h"
#include "synchronous/batch_memory.h"
#include "synchronous/cores.h"

namespace cohort {
namespace {

// The most that Broadcast sends; variables and slots go through the servers.
constexpr std::size_t kMaxBroadcastBytes = std::size_t{256} << 10;
// Buckets of a table, between two looks.
constexpr int kMovesAtATime = 8;

// What step functions get for gradients where none are wanted.
class NoGradients final : public GradientSink {
 public:
  std::span<float> Accumulator(int /*parameter*/) override { Refuse(); }
  void AddSlices(int /*parameter*/, const IndexedSlices& /*slices*/) override { Refuse(); }
  void Ready(int /*parameter*/) override { Refuse(); }
  float loss_seed() const override { Refuse(); }

 private:
  [[noreturn]] static void Refuse() { throw ContractError("no gradients in Evaluate"); }
};

class Implementation final : public ParameterServerStrategy {
 public:
  Implementation(std::unique_ptr<ps::Job> job, StrategyOptions options)
      : options_(std::move(options)),
        job_(std::move(job)),
        device_(options_.devices.empty() ? CpuDevice() : options_.devices.front()),
        stream_(!apart() && options_.make_stream ? options_.make_stream() : device_->MakeStream()),
        intra_op_threads_(options_.intra_op_threads > 0 ? options_.intra_op_threads
                                                        : CoresPerReplica(job_->config(), 1)) {}

  std::string_view kind() const override { return "parameter_server"; }
  const ClusterConfig& cluster() const override { return job_->config(); }
  bool is_chief() const override { return job_->is_chief(); }
  int num_replicas_in_sync() const override {
    return options_.consistency.synchronous() ? static_cast<int>(job_->workers().size()) : 1;
  }
  int num_local_replicas() const override { return 1; }
  bool trains() const override { return job_->trains(); }
  bool evaluates() const override { return is_chief(); }
  Status Serve() override;

  Status Bind(ParameterSet& parameters, std::unique_ptr<Optimizer> optimizer) override;
  Result<std::unique_ptr<DistributedDataset>> Distribute(const data::Dataset& dataset,
                                                         const InputOptions& options) override;
  Result<StepResult> Step(const DistributedBatch& batch, const StepFn& fn) override;
  Result<StepResult> Evaluate(const DistributedBatch& batch, const StepFn& fn) override;

  Status ReduceGradients(std::span<const std::span<float>> /*gradients*/,
                         double /*weight*/) override {
    return Unimplemented(
        "ReduceGradients: under parameter_server gradients go to the servers, which update there "
        "[use Step, or a synchronous strategy]");
  }
  Status Broadcast(std::span<std::byte> bytes) override {
    if (began_ || bytes.size() > kMaxBroadcastBytes) {
      return {};
    }
    const Status status = job_->Broadcast(bytes);
    client_ = job_->client();
    return status;
  }
  Result<Mirrored<Tensor>> Reduce(ReduceOp /*op*/, const PerReplica<Tensor>& value) override {
    return Local(value);
  }
  Result<Mirrored<Tensor>> Gather(const PerReplica<Tensor>& value) override { return Local(value); }

  const Optimizer* optimizer() const override { return optimizer_.get(); }
  std::span<const std::span<float>> slots() override;
  std::int64_t step() const override { return step_; }
  Status SetStep(std::int64_t step) override {
    if (step < 0) {
      return InvalidArgument("SetStep to " + std::to_string(step));
    }
    step_ = step;
    return {};
  }
  Status PullState() override;
  Status PushState() override;
  Status SaveTable(int table, FileSystem& files, const std::string& path) override;
  Status LoadTable(int table, FileSystem& files, const std::vector<std::string>& chain) override;
  std::optional<std::int64_t> rows_saved_at() const override {
    return saving_ && saved_rows_.has_value() ? std::optional(saved_rows_->step) : std::nullopt;
  }
  Status SaveTableChanges(int table, FileSystem& files, const std::string& path) override;
  Status StopWork(const std::string& why) override;
  bool SaveBetweenUpdates(SavePlan plan) override {
    if (is_chief()) {
      plan_ = std::move(plan);
    }
    return true;
  }

  Status Barrier(std::string_view /*name*/) override { return {}; }
  void ReportError(const Status& error) override { job_->ReportError(error); }
  Status Shutdown() override;

  Result<std::unique_ptr<Coordinator>> MakeCoordinator(const ScheduleOptions& options) override;
  Status ServeFunctions(const Functions& functions) override;

  std::vector<EpochCoverage> coverage() const override {
    return is_chief() ? std::as_const(*job_).coordinator()->coverage()
                      : std::vector<EpochCoverage>();
  }
  const Consistency& consistency() const override { return options_.consistency; }
  Result<ParameterServerStats> stats() override;
  void CountIn(Metrics& metrics) override {
    if (job_->is_server()) {
      job_->server()->CountIn(metrics);
    }
  }

 private:
  bool global_mean() const { return options_.loss_scale == LossScale::kGlobalMean; }

  Result<Mirrored<Tensor>> Local(const PerReplica<Tensor>& value) const;

  Status OpenData();
  Status Outlast(const std::function<Status()>& look);
  Status GoOn(const Status& error);
  Status Surviving(const std::function<Status()>& fn);
  void LookAhead(std::uint64_t round, std::int64_t step);
  Status Assign(std::span<const float> values, std::span<const std::span<float>> slots,
                std::int64_t step);
  Result<std::int64_t> RestoreSaved(const ps::Job::Lost* only);
  Result<std::int64_t> RestoreSaved();
  std::uint64_t RoundsToSee() const;
  Status Idle();
  Status Look();
  Status SaveIfDue();
  Status BalanceIfDue();
  // A point between two updates, of which the servers keep what they had.
  struct Frozen {
    ps::Coordinator::Cut cut;
    ps::Course course;
  };
  Result<Frozen> Freeze(const ps::Coordinator::Cut& cut);
  Status SaveSnapshot(const ps::Coordinator::Cut& cut, ps::Course course);
  Status FinishLastRound();
  Status CatchUp(const ps::RoundCommit& commit);
  bool apart() const { return device_->memory_space() == MemorySpace::kDevice; }
  Status MakeReplica(ParameterSet& parameters);
  // What the servers have sent: the parameters, or what goes on to the device.
  std::span<float> values() const {
    return replica_ != nullptr ? replica_->values() : parameters_->all();
  }
  // The same, to be written.
  std::span<float> NewValues() {
    if (replica_ != nullptr) {
      replica_->Changed();
    }
    return values();
  }
  // To the parameters, where they are not the same.
  void ShowValues() {
    if (replica_ != nullptr) {
      std::ranges::copy(values(), parameters_->all().begin());
    }
  }
  Status Drain();
  Status Refresh(bool everything);
  // The result of one pass over `part`, which leaves gradients in sink_ if `train`.
  Result<ReplicaResult> Run(const data::Batch& part, const StepFn& fn, bool train);
  Result<StepResult> StepAlone(const data::Batch& part, const StepFn& fn);
  Result<StepResult> StepTogether(const DistributedBatch& batch, const StepFn& fn);
  double PushWeight(double weight) const;
  void KeepFixedValues();
  void RestoreFixedValues();
  void PutFixedValues(bool difference);
  template <typename Fn>
  void ForFixed(const Fn& fn);
  StepResult ResultOf(const ps::RoundSums& sums) const;

  const StrategyOptions options_;
  const std::unique_ptr<ps::Job> job_;
  ps::Client* client_ = nullptr;  // the job's; none in a server
  std::vector<TableSpec> tables_;
  std::unique_ptr<ps::RemoteRows> rows_;  // where the model has tables; none in a server
  const std::shared_ptr<Device> device_;  // the replica's; owners: this and the program
  const std::unique_ptr<Stream> stream_;
  const int intra_op_threads_;
  std::unique_ptr<ps::DeviceReplica> replica_;  // where its memory is apart; none in a server

  ParameterSet* parameters_ = nullptr;
  std::unique_ptr<Optimizer> optimizer_;
  std::vector<Tensor> slot_arenas_;
  std::vector<std::span<float>> slots_;
  std::unique_ptr<ps::LocalSink> sink_;
  std::vector<float> fixed_values_;  // of what is not trainable, before the pass
  std::int64_t step_ = 0;
  bool fresh_ = false;                  // have values been pulled since the job began?
  int datasets_ = 0;                    // distributed for training
  std::optional<ps::RoundPart> round_;  // of the batch that was handed out last
  ps::FinishedSplit finished_;          // what the steps of the current split came to
  SavePlan plan_;                       // in the chief
  ps::Coordinator::Advance saved_;      // when plan_ was carried out last
  std::int64_t frozen_step_ = 0;        // of the last snapshot
  std::int64_t saved_step_ = -1;        // of the last one that was saved
  std::uint64_t failed_saves_ = 0;
  bool saving_ = false;  // it is being carried out, of a snapshot
  // The last save whose rows are whole, and its snapshot, since which servers know the changes.
  struct SavedRows {
    std::int64_t step = 0;
    std::uint64_t snapshot = 0;
  };
  std::optional<SavedRows> saved_rows_;
  std::size_t written_tables_ = 0;  // of the save that is being carried out
  std::chrono::steady_clock::time_point balance_at_;
  std::vector<ps::LoadMeter> loads_;  // of each table
  std::int64_t moved_buckets_ = 0;
  std::uint64_t snapshots_ = 0;      // so far; the number of the last one
  std::optional<data::Batch> next_;  // behind the one that was handed out last, where known
  bool idle_ = true;                 // no step since the last piece of work began
  int roll_backs_ = 0;
  bool work_stands_ = false;             // after GoOn
  const ps::Job::Lost* lost_ = nullptr;  // what is being restored, where that is not all
  bool void_ = false;                    // the batch that was handed out last, by a roll-back since
  bool own_error_ = false;               // of the step function, or that servers do not come back
  // In the chief until the first save: what training began with, beside the rows.
  struct Initial {
    std::vector<float> values;
    std::vector<std::vector<float>> slots;  // none: as the optimizer has them
    std::int64_t step = 0;
  };
  std::optional<Initial> initial_;
  bool rows_loaded_ = false;  // before training began
  bool functions_ = false;    // are called, instead of data
  bool stopped_ = false;      // StopWork was called
  bool began_ = false;        // Serve was called, or the first epoch begun
};

// ---- Serving ------------------------------------------------------------------------------------

Status Implementation::Serve() {
  began_ = true;
  if (job_->is_server()) {
    return job_->ServeVariables();
  }
  if (trains()) {
    return {};
  }
  Require(parameters_ != nullptr, "Bind before Serve");
  COHORT_RETURN_IF_ERROR(OpenData());
  saved_ = job_->coordinator()->advance();
  if (!functions_) {
    job_->BeginTraining();
  }
  COHORT_RETURN_IF_ERROR(Outlast([this] { return Look(); }));
  COHORT_RETURN_IF_ERROR(FinishLastRound());
  COHORT_RETURN_IF_ERROR(Refresh(/*everything=*/true));
  // Whoever finds the save that the program makes of it must find the way back to it, too.
  return plan_.restore ? job_->coordinator()->Remember(job_->coordinator()->CourseAt(step_))
                       : OkStatus();
}

// Until the workers are done, through the losses of servers.
Status Implementation::Outlast(const std::function<Status()>& look) {
  for (;;) {
    const Status status = job_->Coordinate(look);
    if (status.ok()) {
      return job_->EndTraining();
    }
    COHORT_RETURN_IF_ERROR(GoOn(status));
  }
}

Status Implementation::Shutdown() {
  if (rows_ != nullptr) {
    rows_->Forget();  // their client may be replaced
  }
  if (is_chief() && trains()) {
    COHORT_RETURN_IF_ERROR(job_->Done());
    COHORT_RETURN_IF_ERROR(Outlast({}));
  }
  return job_->Leave();
}

// OK: the servers are well again. Where they were rolled back, what this process had begun since is
// void; else work_stands_. Else the reason.
Status Implementation::GoOn(const Status& error) {
  if (error.code() == StatusCode::kCancelled) {
    return error;  // the job is stopped
  }
  Status status = error;
  work_stands_ = true;
  next_.reset();
  saved_rows_.reset();  // servers may be other ones
  if (rows_ != nullptr) {
    rows_->Forget();
  }
  do {
    status = is_chief()
                 ? job_->Recover(status, [this](const auto* only) { return RestoreSaved(only); })
                 : job_->Rejoin(status);
    client_ = job_->client();  // also where that failed halfway
    COHORT_RETURN_IF_ERROR(status);
    work_stands_ = work_stands_ && job_->work_stands();
    if (!job_->work_stands()) {
      if (is_chief()) {
        saved_ = job_->coordinator()->advance();
      }
      ++roll_backs_;
      finished_ = {};
      round_.reset();
      idle_ = true;
    }
    if (!trains()) {
      return {};
    }
    status = client_->Pull(NewValues(), /*everything=*/true);
    step_ = static_cast<std::int64_t>(client_->version());
  } while (!status.ok());
  return {};
}

Status Implementation::Surviving(const std::function<Status()>& fn) {
  for (Status status = fn(); !status.ok(); status = fn()) {
    COHORT_RETURN_IF_ERROR(GoOn(status));
    void_ = void_ || !work_stands_;
  }
  return {};
}

Result<std::int64_t> Implementation::RestoreSaved(const ps::Job::Lost* only) {
  lost_ = only;
  const Result<std::int64_t> step = RestoreSaved();
  lost_ = nullptr;
  return step;
}

Result<std::int64_t> Implementation::RestoreSaved() {
  client_ = job_->client();
  if (plan_.restore) {
    const Result<std::int64_t> step = plan_.restore();
    if (step.status().code() != StatusCode::kNotFound) {
      return step;
    }
  }
  if (!initial_.has_value() || rows_loaded_) {
    return FailedPrecondition(
        initial_.has_value()
            ? "the rows that were loaded before training began are lost, and there "
              "is no save of them [save while training]"
            : "the save that the job would go back to is gone");
  }
  std::vector<std::span<float>> slots(initial_->slots.begin(), initial_->slots.end());
  COHORT_RETURN_IF_ERROR(Assign(initial_->values, slots, initial_->step));
  return initial_->step;
}

// To all servers; or to those that are being restored, at the step of the others.
Status Implementation::Assign(std::span<const float> values,
                              std::span<const std::span<float>> slots, std::int64_t step) {
  const auto version = static_cast<std::uint64_t>(step);
  return lost_ == nullptr
             ? client_->Assign(values, slots, version)
             : client_->AssignTo(lost_->servers, values, slots, std::max(version, lost_->version));
}

// A step sees all rounds before its own. A round that is trained again, for a worker that was lost
// after others had sent theirs, may be behind this process's values: its rows wait for nothing.
std::uint64_t Implementation::RoundsToSee() const {
  if (!options_.consistency.synchronous()) {
    return 0;
  }
  return round_.has_value() ? round_->round - 1 : static_cast<std::uint64_t>(step_);
}

// It is complete, but the workers may not have told the servers yet, and may not live to do it.
Status Implementation::FinishLastRound() {
  ps::RoundCommit commit;
  const std::uint64_t round = job_->coordinator()->LastRound(&commit);
  if (round > 0 && options_.consistency.backup_workers > 0) {
    return job_->Explain(CatchUp(commit));
  }
  if (round > 0 && optimizer_->global_clip_norm() > 0) {
    return job_->Explain(client_->Settle(round, {}, optimizer_->global_clip_norm()));
  }
  return {};
}

// In the chief, a few times a second while others train.
Status Implementation::Look() {
  if (plan_.stop != nullptr && plan_.stop->load() && !trains()) {
    return StopWork("the job is stopped, as " + cluster().task.ToString() + " was asked to");
  }
  if (stopped_) {
    return {};
  }
  COHORT_RETURN_IF_ERROR(SaveIfDue());
  return BalanceIfDue();
}

Status Implementation::StopWork(const std::string& why) {
  if (!is_chief() || std::exchange(stopped_, true)) {
    return {};
  }
  ps::Coordinator& coordinator = *job_->coordinator();
  std::optional<Frozen> frozen;
  const auto stop = [&](const ps::Coordinator::Cut& cut) -> Status {
    if (plan_.save) {
      COHORT_ASSIGN_OR_RETURN(frozen, Freeze(cut));
    }
    coordinator.StopWork(Cancelled(why));
    return {};
  };
  const Deadline patience = DeadlineAfter(2 * options_.heartbeat_timeout);
  std::string left = "work of a process that is gone is left over, and nobody to do it";
  bool stopped = false;
  for (bool again = true; again && !stopped;) {
    again = !coordinator.WorkersHaveLeft() && std::chrono::steady_clock::now() < patience;
    COHORT_RETURN_IF_ERROR(job_->BetweenUpdates(
        [&](const ps::Coordinator::Cut& cut) {
          const Status status = stop(cut);
          stopped = status.ok();
          return status;
        },
        [&](const std::string& late) {
          left = late;
          again = false;
        }));
    if (again && !stopped) {  // somebody else may take what is left over
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
  if (!stopped) {
    coordinator.StopWork(Cancelled(why));
    options_.log.Warning(left +
                         ": where the job is stopped it is not saved, and the save before "
                         "it counts");
    return {};
  }
  return frozen.has_value() ? SaveSnapshot(frozen->cut, std::move(frozen->course)) : OkStatus();
}

// What is asked for on the busiest server moves to the idlest, a few buckets at a time.
Status Implementation::BalanceIfDue() {
  const auto now = std::chrono::steady_clock::now();
  if (options_.balance_interval.count() <= 0 || rows_ == nullptr || job_->num_servers() < 2 ||
      now < balance_at_) {
    return {};
  }
  balance_at_ = now + options_.balance_interval;
  loads_.resize(tables_.size());
  rows_->Wait();
  for (std::size_t t = 0; t < tables_.size(); ++t) {
    const int table = static_cast<int>(t);
    Result<std::vector<ps::BucketLoad>> counts = job_->rows()->Loads(table);
    Status status = counts.status();
    if (status.ok()) {
      for (const ps::BucketMoveTo& move :
           ps::PlanMoves(loads_[t].Since(*counts), job_->num_servers(), kMovesAtATime)) {
        if (status = job_->rows()->Move(table, move.bucket, move.to); !status.ok()) {
          break;
        }
        ++moved_buckets_;
      }
    }
    if (status.code() == StatusCode::kUnavailable) {
      return job_->Explain(status);
    }
    if (!status.ok()) {
      options_.log.Warning("buckets of table \"" + tables_[t].name +
                           "\" stay where they are: " + status.ToString());
    }
  }
  return {};
}

Status Implementation::SaveIfDue() {
  if (!plan_.save) {
    return {};
  }
  const ps::Coordinator::Advance now = job_->coordinator()->advance();
  const bool steps = plan_.every_steps > 0 && now.steps - saved_.steps >= plan_.every_steps;
  const bool epochs = plan_.every_epochs > 0 && now.epochs - saved_.epochs >= plan_.every_epochs;
  if (!steps && !epochs) {
    return {};
  }
  std::optional<Frozen> frozen;
  const auto freeze = [this, &frozen](const ps::Coordinator::Cut& cut) -> Status {
    COHORT_ASSIGN_OR_RETURN(frozen, Freeze(cut));
    return {};
  };
  const auto late = [this, &now](const std::string& why) {
    saved_ = now;
    ++failed_saves_;
    options_.log.Warning(
        "the save that is due is put off until the next one is, training goes on: " + why);
  };
  COHORT_RETURN_IF_ERROR(job_->BetweenUpdates(freeze, late));
  return frozen.has_value() ? SaveSnapshot(frozen->cut, std::move(frozen->course)) : OkStatus();
}

// The servers keep what they have at a point between two updates; the rest is done while the
// workers go on.
Result<Implementation::Frozen> Implementation::Freeze(const ps::Coordinator::Cut& cut) {
  COHORT_RETURN_IF_ERROR(FinishLastRound());
  const Result<std::uint64_t> version = client_->Freeze(++snapshots_);
  COHORT_RETURN_IF_ERROR(job_->Explain(version.status()));
  frozen_step_ = static_cast<std::int64_t>(*version);
  saved_ = job_->coordinator()->advance();
  return Frozen{.cut = cut, .course = job_->coordinator()->CourseAt(frozen_step_)};
}

Status Implementation::SaveSnapshot(const ps::Coordinator::Cut& cut, ps::Course course) {
  // Before the save has its name.
  Status saved = plan_.restore ? job_->coordinator()->Remember(std::move(course)) : OkStatus();
  if (saved.code() == StatusCode::kAborted) {
    return saved;  // another chief has taken this one's place
  }
  if (rows_ != nullptr) {
    rows_->Wait();
    job_->rows()->ReadSnapshot(snapshots_);
  }
  saving_ = true;
  written_tables_ = 0;
  if (saved.ok()) {
    saved = plan_.save(cut.epoch.epoch, cut.batch);
  }
  saving_ = false;
  if (rows_ != nullptr) {
    job_->rows()->ReadSnapshot(0);
  }
  // Files fail with the codes of servers, too: whether one is lost, the servers tell.
  COHORT_RETURN_IF_ERROR(job_->Explain(client_->Thaw().status()));
  if (trains()) {  // on the values that there are now, not on those that were saved
    COHORT_RETURN_IF_ERROR(Refresh(/*everything=*/false));
  }
  if (saved.ok()) {
    saved_step_ = frozen_step_;
    // Not of a save that found its step there already: rows may be other than they were then.
    if (written_tables_ == tables_.size()) {
      saved_rows_ = SavedRows{.step = frozen_step_, .snapshot = snapshots_};
    }
    if (plan_.restore) {
      initial_.reset();
    }
    return {};
  }
  ++failed_saves_;
  options_.log.Warning(
      "the save of step " + std::to_string(frozen_step_) +
      " has failed, training goes on, and the save before it counts: " + saved.ToString());
  if (!plan_.restore || saved_step_ == frozen_step_) {
    return {};
  }
  // In the journal the way back to no save does no harm, and is gone when it is written next.
  const Status forgotten = job_->coordinator()->Forget(frozen_step_);
  return forgotten.code() == StatusCode::kAborted ? forgotten : OkStatus();
}

Result<std::unique_ptr<Coordinator>> Implementation::MakeCoordinator(
    const ScheduleOptions& options) {
  if (!is_chief() || trains() || options_.consistency.synchronous()) {
    return FailedPrecondition(
        cluster().task.ToString() +
        (options_.consistency.synchronous()
             ? ": functions train apart from each other, and application is synchronous [apply "
               "asynchronously]"
             : " cannot call functions: a chief that does not train does [cohort launch -n 2 --ps "
               "1 --chief -- PROGRAM]"));
  }
  Require(client_ != nullptr, "Bind before Coordinator::Create");
  COHORT_ASSIGN_OR_RETURN(auto coordinator, ps::OpenFunctions(*job_->coordinator(), options));
  functions_ = true;
  COHORT_RETURN_IF_ERROR(OpenData());
  return coordinator;
}

Status Implementation::ServeFunctions(const Functions& functions) {
  if (!trains() || is_chief() || options_.consistency.synchronous()) {
    return FailedPrecondition(
        cluster().task.ToString() +
        " runs no functions: workers of an asynchronous job with a chief do [cohort launch -n 2 "
        "--ps 1 --chief -- PROGRAM]");
  }
  Require(client_ != nullptr, "Bind before ServeFunctions");
  return job_->Explain(
      ps::RunFunctions(*job_->coordinator_client(), functions,
                       {.index = job_->rank(), .count = static_cast<int>(job_->workers().size())},
                       [this] { return Idle(); }));
}

// Only now: what the chief assigned to the servers before is what training starts from.
Status Implementation::OpenData() {
  const std::span<const float> initial = values();
  const std::uint64_t digest =
      options_.journal_folder.empty()
          ? 0
          : Hash64({reinterpret_cast<const char*>(initial.data()), initial.size_bytes()});
  return job_->coordinator()->Open(static_cast<std::int64_t>(client_->version()), digest);
}

// ---- Parameters ---------------------------------------------------------------------------------

Status Implementation::Bind(ParameterSet& parameters, std::unique_ptr<Optimizer> optimizer) {
  Require(parameters_ == nullptr, "Bind once");
  Require(parameters.built() && optimizer != nullptr, "built parameters and an optimizer");
  COHORT_RETURN_IF_ERROR(ps::CheckServerSide(*optimizer, options_.consistency));
  ps::ModelSpec spec =
      ps::ModelSpec::Of(parameters, optimizer->config(), options_.consistency, job_->num_servers());
  spec.partitioner = options_.partitioner;
  spec.copies = options_.server_loss == ServerLoss::kReplica;
  if (const ServerSideOptimizer* const side = ServerSideOptimizer::Of(*optimizer);
      spec.copies && side != nullptr &&
      (side->options().delay_compensation > 0 || side->options().staleness_scaling)) {
    return InvalidArgument(
        std::string(side->options().staleness_scaling ? "staleness_scaling"
                                                      : "delay_compensation") +
        " with server_loss kReplica: copies do not know what a gradient was computed from [one or "
        "the other]");
  }
  tables_ = spec.tables;
  if (!tables_.empty() && options_.consistency.backup_workers > 0) {
    return Unimplemented("sparse table \"" + tables_[0].name +
                         "\" with backup workers [consistency sync or async, or make it a "
                         "parameter]");
  }
  for (const TableSpec& table : tables_) {
    COHORT_RETURN_IF_ERROR(table.Check());
  }
  if (job_->is_server()) {
    COHORT_RETURN_IF_ERROR(job_->server()->Declare(spec, cluster().task.ToString()));
  } else {
    client_ = &job_->Connect(spec);
  }
  parameters_ = &parameters;
  if (job_->rows() != nullptr) {
    rows_ = std::make_unique<ps::RemoteRows>(
        *job_, tables_, [this] { return RoundsToSee(); }, step_);
    parameters.SetRows(rows_.get());
  }
  optimizer_ = std::move(optimizer);
  if (client_ == nullptr) {
    return {};
  }
  COHORT_RETURN_IF_ERROR(MakeReplica(parameters));
  if (is_chief()) {
    COHORT_RETURN_IF_ERROR(job_->Explain(client_->Declare()));
    COHORT_RETURN_IF_ERROR(job_->Explain(client_->Begin({}).status()));
    COHORT_RETURN_IF_ERROR(job_->Explain(client_->Assign(parameters.all(), {}, 0)));
    initial_.emplace();
    initial_->values.assign(parameters.all().begin(), parameters.all().end());
    COHORT_RETURN_IF_ERROR(job_->Initialised());
  } else {
    const auto meet = [this]() -> Status {
      COHORT_RETURN_IF_ERROR(client_->Declare());
      COHORT_RETURN_IF_ERROR(job_->Initialised());
      return Refresh(/*everything=*/true);
    };
    for (Status status = meet(); !status.ok(); status = meet()) {
      COHORT_RETURN_IF_ERROR(job_->Rejoin(status));
      client_ = job_->client();
    }
    ShowValues();
  }
  fresh_ = false;  // the chief may set them yet
  if (trains()) {
    sink_ = std::make_unique<ps::LocalSink>(parameters, replica_.get());
    std::size_t fixed = 0;
    ForFixed([&](std::span<float> value, std::span<float> /*gradient*/) { fixed += value.size(); });
    fixed_values_.resize(fixed);
  }
  return {};
}

// Of a process that computes, on a device whose memory is apart.
Status Implementation::MakeReplica(ParameterSet& parameters) {
  replica_ = nullptr;
  if (!apart() || !(trains() || evaluates())) {
    return {};
  }
  try {
    replica_ = std::make_unique<ps::DeviceReplica>(device_, parameters, *stream_, intra_op_threads_,
                                                   trains());
  } catch (const StatusError& error) {
    return error.status();
  }
  return replica_->Drain(options_.collective_timeout);
}

Status Implementation::Refresh(bool everything) {
  const Status status = client_->Pull(NewValues(), everything);
  step_ = static_cast<std::int64_t>(client_->version());
  return job_->Explain(status);
}

std::span<const std::span<float>> Implementation::slots() {
  Require(optimizer_ != nullptr, "Bind before slots");
  while (static_cast<int>(slots_.size()) < optimizer_->num_slots()) {
    const int slot = static_cast<int>(slots_.size());
    slot_arenas_.emplace_back(DType::kFloat32,
                              Shape{static_cast<std::int64_t>(parameters_->all().size())});
    slots_.push_back(slot_arenas_.back().data<float>());
    std::fill(slots_.back().begin(), slots_.back().end(), optimizer_->slot_initial_value(slot));
  }
  return slots_;
}

Status Implementation::PullState() {
  if (client_ == nullptr) {
    return {};
  }
  if (is_chief() && !saving_) {
    COHORT_RETURN_IF_ERROR(FinishLastRound());
  }
  const Status status = client_->PullState(NewValues(), slots());
  ShowValues();
  step_ = static_cast<std::int64_t>(client_->version());
  return job_->Explain(status);
}

Status Implementation::PushState() {
  if (client_ == nullptr || !is_chief()) {
    return {};  // the servers take what the chief has
  }
  if (replica_ != nullptr) {
    std::ranges::copy(parameters_->all(), NewValues().begin());
  }
  if (!began_) {
    initial_ = Initial{.step = step_};
    initial_->values.assign(parameters_->all().begin(), parameters_->all().end());
    for (const std::span<float> slot : slots()) {
      initial_->slots.emplace_back(slot.begin(), slot.end());
    }
  }
  return job_->Explain(Assign(parameters_->all(), slots(), step_));
}

Status Implementation::SaveTable(int table, FileSystem& files, const std::string& path) {
  Require(rows_ != nullptr, "a table of the bound parameters, not on a server");
  const TableSpec& spec = tables_.at(static_cast<std::size_t>(table));
  rows_->Wait();
  const Status status = ps::SaveTable(*job_->rows(), table, spec, files, path);
  written_tables_ += status.ok() ? 1 : 0;
  return job_->Explain(status);
}

Status Implementation::SaveTableChanges(int table, FileSystem& files, const std::string& path) {
  Require(rows_saved_at().has_value(), "SaveTableChanges where rows_saved_at says a step");
  const TableSpec& spec = tables_.at(static_cast<std::size_t>(table));
  job_->rows()->ReadSnapshot(snapshots_, saved_rows_->snapshot);
  const Status status =
      ps::SaveTable(*job_->rows(), table, spec, files, path, ps::RowFileKind::kChanges);
  job_->rows()->ReadSnapshot(snapshots_);
  written_tables_ += status.ok() ? 1 : 0;
  return job_->Explain(status);
}

Status Implementation::LoadTable(int table, FileSystem& files,
                                 const std::vector<std::string>& chain) {
  Require(rows_ != nullptr, "a table of the bound parameters, not on a server");
  const TableSpec& spec = tables_.at(static_cast<std::size_t>(table));
  rows_->Forget();
  rows_loaded_ = rows_loaded_ || !began_;
  return job_->Explain(ps::LoadTable(*job_->rows(), table, spec, files, chain,
                                     lost_ == nullptr ? nullptr : &lost_->servers));
}

Result<ParameterServerStats> Implementation::stats() {
  Require(client_ != nullptr, "stats after Bind, not on a server");
  COHORT_ASSIGN_OR_RETURN(const ps::StoreStats stats, client_->Stats());
  return ParameterServerStats{.pushes = stats.pushes,
                              .duplicates = stats.duplicates,
                              .rejected = stats.rejected,
                              .mean_staleness = stats.mean_staleness,
                              .max_staleness = stats.max_staleness,
                              .late = stats.late,
                              .parked = stats.parked,
                              .max_lead = stats.max_lead,
                              .lost_updates = job_->lost_updates(),
                              .foreseen = rows_ == nullptr ? 0 : rows_->foreseen(),
                              .failed_saves = failed_saves_,
                              .moved_buckets = moved_buckets_};
}

Result<Mirrored<Tensor>> Implementation::Local(const PerReplica<Tensor>& value) const {
  Require(value.values.size() == 1, "one value per local replica");
  return Mirrored<Tensor>{value.values[0]};
}

// ---- Data ---------------------------------------------------------------------------------------

Result<std::unique_ptr<DistributedDataset>> Implementation::Distribute(
    const data::Dataset& dataset, const InputOptions& options) {
  if (dataset.batch_size() < 1) {
    return InvalidArgument("a data set to distribute is in batches [Batch(size)]");
  }
  if (data::HasOwnOrder(options.policy) || options.policy == data::ShardPolicy::kOff) {
    return InvalidArgument(
        "under a parameter server the data is handed out on demand, in splits of one order: "
        "InputOptions::policy kFile, kHint, kOwn and kOff have no meaning [kAuto or kData]");
  }
  // Rounds are batches of the order, and predictions come in it.
  const data::Dataset ordered = dataset.Deterministic(true);
  if (options.evaluation) {
    return evaluates() ? ps::MakeWholeDataset(
                             ordered,
                             [this] {
                               Require(client_ != nullptr, "Bind first");
                               return Surviving([this] { return Refresh(/*everything=*/false); });
                             },
                             BatchMemoryOf(device_))
                       : ps::MakeEmptyDataset();
  }
  if (job_->is_server()) {
    return ps::MakeEmptyDataset();
  }
  const int number = datasets_++;
  const ps::DatasetInfo info = ps::InfoOf(dataset);
  if (is_chief()) {
    COHORT_RETURN_IF_ERROR(
        job_->coordinator()->OpenDataset(cluster().task.ToString(), number, info));
  }
  if (!trains()) {
    return ps::MakeEmptyDataset();
  }
  const Status opened = job_->OpenDataset(number, info);
  client_ = job_->client();
  COHORT_RETURN_IF_ERROR(opened);
  ps::Feed feed{.coordinator = [this] { return job_->coordinator_client(); },
                .begin = [this]() -> Status {
                  Require(client_ != nullptr, "Bind before the first epoch");
                  began_ = true;
                  if (is_chief()) {
                    COHORT_RETURN_IF_ERROR(OpenData());
                    job_->BeginTraining();
                  }
                  return {};
                },
                .idle = [this] { return Idle(); },
                .end = [this] { return Refresh(/*everything=*/false); },
                .finished =
                    [this](std::int64_t id) {
                      void_ = false;
                      ps::FinishedSplit finished = std::exchange(finished_, {});
                      finished.id = id;
                      return finished;
                    },
                .round =
                    [this](const ps::RoundPart& part) {
                      void_ = false;
                      round_ = part;
                    },
                .looks_ahead = [this] { return rows_ != nullptr; },
                .next =
                    [this](const data::Batch* batch) {
                      next_ = batch == nullptr ? std::nullopt : std::optional(*batch);
                    },
                .go_on = [this](const Status& status) { return GoOn(status); },
                .roll_backs = [this] { return roll_backs_; },
                .allocate = BatchMemoryOf(device_)};
  if (is_chief()) {
    feed.save = [this](const ps::EpochKey& epoch, const ps::FinishedSplit& finished) {
      job_->Acknowledge(epoch, finished);
      return job_->Explain(Look());
    };
  }
  return options_.consistency.synchronous()
             ? ps::MakeRoundDataset(ordered, number, std::move(feed))
             : ps::MakeSplitDataset(dataset, number, std::move(feed));
}

// ---- One step -----------------------------------------------------------------------------------

Result<ReplicaResult> Implementation::Run(const data::Batch& part, const StepFn& fn, bool train) {
  NoGradients none;
  ReplicaContext context{.replica = trains() ? job_->rank() : 0,
                         .num_replicas = trains() ? static_cast<int>(job_->workers().size()) : 1,
                         .step = train ? step_ + 1 : step_,
                         .parameters = replica_ ? replica_->parameters() : *parameters_,
                         .gradients = train ? static_cast<GradientSink&>(*sink_) : none,
                         .stream = *stream_,
                         .intra_op_threads = intra_op_threads_,
                         .device = device_};
  Result<ReplicaResult> result = ReplicaResult();
  std::exception_ptr exception;
  try {
    if (replica_ != nullptr) {
      replica_->Upload();
    }
    if (train) {
      sink_->Begin(static_cast<double>(part.size), global_mean(), *stream_);
    }
    if (part.size > 0) {
      result = fn(context, part);
    }
    if (train && result.ok()) {
      sink_->End();
    }
  } catch (const StatusError& error) {
    result = error.status();
  } catch (...) {
    exception = std::current_exception();
  }
  // The parameters must not change, nor the arena be sent, before the stream ran dry.
  const Status drained = Drain();
  if (replica_ != nullptr && (exception != nullptr || !result.ok() || !drained.ok())) {
    replica_->Changed();  // the device may have anything
  }
  if (exception != nullptr) {
    RestoreFixedValues();
    std::rethrow_exception(exception);
  }
  const bool broken = rows_ != nullptr && rows_->TakeBroken();
  own_error_ = !broken && !(result.ok() && drained.ok());
  COHORT_RETURN_IF_ERROR(result.status());
  COHORT_RETURN_IF_ERROR(drained);
  if (result->weight == 0) {
    return ReplicaResult();  // without the sums, which may be NaN
  }
  Require(std::isfinite(result->weight) && result->weight >= 0,
          "a step function returns a finite weight of at least 0");
  Require(!train || !global_mean() || result->weight == sink_->weight(),
          "the weight that a step function returns is the one its gradients were scaled by");
  return result;
}

Status Implementation::Drain() {
  const Status status = stream_->Synchronize(DeadlineAfter(options_.collective_timeout));
  if (replica_ == nullptr) {
    return status;
  }
  const Status copied = replica_->Drain(options_.collective_timeout);
  return status.ok() ? copied : status;
}

// fn(value, place in the gradients) for each parameter that is not trained by gradients.
template <typename Fn>
void Implementation::ForFixed(const Fn& fn) {
  for (int p = 0; p < parameters_->size(); ++p) {
    const ParameterSet::Parameter& parameter = (*parameters_)[p];
    if (!parameter.trainable) {
      const auto offset = static_cast<std::size_t>(parameter.offset);
      const auto size = static_cast<std::size_t>(parameter.shape.elements());
      fn(values().subspan(offset, size), sink_->arena().subspan(offset, size));
    }
  }
}

void Implementation::KeepFixedValues() {
  auto to = fixed_values_.begin();
  ForFixed([&](std::span<float> value, std::span<float> /*gradient*/) {
    to = std::copy(value.begin(), value.end(), to);
  });
}

void Implementation::RestoreFixedValues() {
  if (sink_ == nullptr) {
    return;
  }
  NewValues();
  auto from = fixed_values_.begin();
  ForFixed([&](std::span<float> value, std::span<float> /*gradient*/) {
    const auto end = from + static_cast<std::ptrdiff_t>(value.size());
    std::copy(from, end, value.begin());
    from = end;
  });
}

void Implementation::PutFixedValues(bool difference) {
  auto before = fixed_values_.begin();
  ForFixed([&](std::span<float> value, std::span<float> gradient) {
    for (std::size_t i = 0; i < value.size(); ++i) {
      gradient[i] = difference ? value[i] - *before : value[i];
      ++before;
    }
  });
}

// What the servers divide by, such that parts add up to the loss scale that was asked for.
double Implementation::PushWeight(double weight) const {
  switch (options_.loss_scale) {
    case LossScale::kGlobalMean:
      return weight;
    case LossScale::kReplicaMean:
      return 1;
    case LossScale::kSum:
      break;
  }
  return round_.has_value() ? 1.0 / round_->parts : 1.0;
}

StepResult Implementation::ResultOf(const ps::RoundSums& sums) const {
  StepResult result;
  result.weight = sums.weight;
  result.step = step_;
  if (sums.weight > 0) {
    result.loss = sums.loss_sum / sums.weight;
    for (const double metric : sums.metric_sums) {
      result.metrics.push_back(metric / sums.weight);
    }
  }
  return result;
}

Result<StepResult> Implementation::Step(const DistributedBatch& batch, const StepFn& fn) {
  const Range range(Phase::kStep, step_ + 1);
  Require(trains(), "Step where trains() holds");
  Require(sink_ != nullptr, "Bind before the first step");
  Require(batch.replicas.size() == 1, "a batch with one part per local replica");
  if (void_) {
    return ResultOf({});
  }
  if (!fresh_) {
    if (const Status status = Refresh(/*everything=*/true); !status.ok()) {
      COHORT_RETURN_IF_ERROR(GoOn(status));
      if (!work_stands_) {
        return ResultOf({});
      }
    }
    fresh_ = true;
  }
  do {
    if (rows_ != nullptr) {
      rows_->StartBatch(batch.replicas[0]);
    }
    KeepFixedValues();
    own_error_ = false;
    Result<StepResult> result = options_.consistency.synchronous()
                                    ? StepTogether(batch, fn)
                                    : StepAlone(batch.replicas[0], fn);
    if (result.ok()) {
      job_->StepDone();
      return result;
    }
    RestoreFixedValues();
    if (own_error_) {
      job_->StepDone();  // what it has sent is not sent again
      return job_->Explain(result.status());
    }
    if (const Status well = GoOn(result.status()); !well.ok()) {
      job_->StepDone();
      return well;
    }
  } while (work_stands_);  // servers that were not lost may have this step already
  return ResultOf({});     // Next brings the batch again
}

// Under bounded staleness nobody waits for a worker between two pieces of work, and its copy may be
// old when it begins the next one.
Status Implementation::Idle() {
  const bool pause = options_.consistency.bounded() && !idle_;
  idle_ = true;
  return pause ? job_->Explain(client_->Pause()) : OkStatus();
}

// The rows of the next batch, now that those of this one, of `step`, have been pushed.
void Implementation::LookAhead(std::uint64_t round, std::int64_t step) {
  rows_->Forget();
  if (next_.has_value()) {
    rows_->LookAhead(*std::exchange(next_, std::nullopt), round, step);
  }
}

// With the values of the round after `commit`.
Status Implementation::CatchUp(const ps::RoundCommit& commit) {
  ps::Commit message;
  message.set_round(commit.round);
  message.set_attempt(static_cast<std::uint32_t>(commit.attempt));
  message.mutable_winners()->Assign(commit.winners.begin(), commit.winners.end());
  if (commit.round != 0 && optimizer_->global_clip_norm() > 0) {
    COHORT_RETURN_IF_ERROR(client_->Settle(commit.round, message, optimizer_->global_clip_norm()));
  }
  COHORT_RETURN_IF_ERROR(client_->PullForStep(NewValues(), message));
  step_ = static_cast<std::int64_t>(client_->version());
  return {};
}

Result<StepResult> Implementation::StepAlone(const data::Batch& part, const StepFn& fn) {
  if (std::exchange(idle_, false) && options_.consistency.bounded()) {
    COHORT_RETURN_IF_ERROR(CatchUp({}));
    KeepFixedValues();
  }
  COHORT_ASSIGN_OR_RETURN(const ReplicaResult mine, Run(part, fn, /*train=*/true));
  if (mine.weight == 0) {
    RestoreFixedValues();
    return ResultOf({});
  }
  PutFixedValues(/*difference=*/true);
  const double weight = PushWeight(mine.weight);
  if (const ServerSideOptimizer* const side = ServerSideOptimizer::Of(*optimizer_);
      side != nullptr && side->options().clip_norm > 0) {
    sink_->ClipEach(static_cast<float>(1.0 / weight), side->options().clip_norm);
  }
  double clip = 1;
  if (optimizer_->global_clip_norm() > 0) {
    const double scale = static_cast<float>(1.0 / weight);
    clip = ClipFactor(sink_->SquaredNorm() * scale * scale, optimizer_->global_clip_norm());
    clip = std::isfinite(clip) ? clip : 1;  // the server says whose gradient it is that is broken
  }
  // Rows must be as fresh as the values, which bounded staleness has this worker wait for.
  const bool bounded = options_.consistency.bounded();
  const std::int64_t row_step = step_ + 1;
  const auto push = [&]() -> Status {
    if (rows_ != nullptr) {
      COHORT_RETURN_IF_ERROR(job_->rows()->Push(sink_->rows(), row_step, weight));
    }
    if (rows_ != nullptr && !bounded) {
      LookAhead(/*round=*/0, row_step);
    }
    return client_->Push({.arena = sink_->arena(), .weight = weight, .clip = clip}, NewValues());
  };
  Status pushed = push();
  // Where there are copies the same frames go out again, under the same numbers: what has arrived
  // counts once. Computed anew, they might be others.
  while (!pushed.ok() && options_.server_loss == ServerLoss::kReplica) {
    if (const Status well = GoOn(pushed); !well.ok()) {
      own_error_ = true;  // the servers have been waited for
      return well;
    }
    if (!work_stands_) {
      return ResultOf({});  // Next brings the batch again
    }
    pushed = push();
  }
  COHORT_RETURN_IF_ERROR(pushed);
  step_ = static_cast<std::int64_t>(client_->version());
  if (rows_ != nullptr && bounded) {
    LookAhead(/*round=*/0, step_);
  }
  const ps::RoundSums sums{mine.loss_sum, mine.weight, mine.metric_sums};
  ++finished_.steps;
  finished_.sums.Add(sums);
  StepResult result = ResultOf(sums);
  result.staleness = static_cast<std::int64_t>(client_->staleness());
  return result;
}

Result<StepResult> Implementation::StepTogether(const DistributedBatch& batch, const StepFn& fn) {
  Require(round_.has_value() && round_->epoch.epoch == batch.epoch && round_->batch == batch.index,
          "under synchronous application a step takes the batch that Next gave last");
  const ps::RoundPart part = *round_;
  const bool elected = options_.consistency.backup_workers > 0;
  if (elected && client_->version() + 1 != part.round) {
    COHORT_RETURN_IF_ERROR(CatchUp(part.previous));  // late for the round before
    KeepFixedValues();
  }
  COHORT_ASSIGN_OR_RETURN(const ReplicaResult mine, Run(batch.replicas[0], fn, /*train=*/true));
  PutFixedValues(/*difference=*/false);
  ps::Gradient gradient{.arena = sink_->arena(), .weight = PushWeight(mine.weight)};
  gradient.round.emplace();
  gradient.round->set_round(part.round);
  gradient.round->set_attempt(static_cast<std::uint32_t>(part.attempt));
  gradient.round->set_part(static_cast<std::uint32_t>(part.part));
  gradient.round->set_parts(static_cast<std::uint32_t>(part.parts));
  if (rows_ != nullptr) {
    // What weighs nothing contributes nothing, not even its NaNs.
    const auto rows = mine.weight > 0 ? sink_->rows() : std::vector<ps::RowClient::Gradients>();
    COHORT_RETURN_IF_ERROR(job_->rows()->PushPart(
        rows, step_ + 1, gradient.weight,
        {.round = part.round, .attempt = part.attempt, .part = part.part, .parts = part.parts}));
  }
  COHORT_RETURN_IF_ERROR(client_->Push(gradient, {}));
  COHORT_ASSIGN_OR_RETURN(const std::optional<ps::RoundTotal> total,
                          job_->coordinator_client()->FinishRound(
                              part, {mine.loss_sum, mine.weight, mine.metric_sums}));
  round_.reset();
  if (!total.has_value()) {
    // Values stay as they are: the batch comes again, cut among the workers that are left, and its
    // gradient is to be taken where this one was.
    RestoreFixedValues();
    return ResultOf({});
  }
  if (elected) {
    COHORT_RETURN_IF_ERROR(CatchUp(total->commit));
    return ResultOf(*total);
  }
  if (rows_ != nullptr) {
    LookAhead(part.round, step_ + 1);
  }
  if (optimizer_->global_clip_norm() > 0) {
    COHORT_RETURN_IF_ERROR(client_->Settle(part.round, {}, optimizer_->global_clip_norm()));
  }
  COHORT_RETURN_IF_ERROR(Refresh(/*everything=*/false));
  return ResultOf(*total);
}

Result<StepResult> Implementation::Evaluate(const DistributedBatch& batch, const StepFn& fn) {
  Require(client_ != nullptr, "Bind before Evaluate, which a server does not call");
  Require(batch.replicas.size() == 1, "a batch with one part per local replica");
  if (sink_ != nullptr) {
    KeepFixedValues();
  }
  Result<ReplicaResult> mine = Run(batch.replicas[0], fn, /*train=*/false);
  while (!mine.ok() && !own_error_) {  // a server was lost while rows were looked up
    COHORT_RETURN_IF_ERROR(GoOn(mine.status()));
    void_ = void_ || !work_stands_;
    mine = Run(batch.replicas[0], fn, /*train=*/false);
  }
  if (!mine.ok()) {
    return job_->Explain(mine.status());
  }
  return ResultOf({mine->loss_sum, mine->weight, mine->metric_sums});
}

}  // namespace

Result<std::unique_ptr<ParameterServerStrategy>> ParameterServerStrategy::Make(
    const ClusterConfig& config, const StrategyOptions& options) {
  if (options.make_bucket_hook || options.virtual_shards != 0) {
    return InvalidArgument(
        std::string(options.make_bucket_hook ? "make_bucket_hook" : "virtual_shards") +
        " under a parameter server, which has no buckets and no replicas in step [" +
        (options.make_bucket_hook ? "server_wire compresses what travels; or " : "") +
        "use a synchronous strategy]");
  }
  if (options.cross_device_ops != "auto") {
    return InvalidArgument(
        "cross_device_ops '" + options.cross_device_ops +
        "' under a parameter server, which adds what workers send [leave it out, "
        "or use a synchronous strategy]");
  }
  const std::string collective =
      options.communication.algorithm != "auto"
          ? "communication.algorithm '" + options.communication.algorithm + "'"
      : options.rails != 1 ? "rails " + std::to_string(options.rails)
      : options.mpi_implementation != "cohort"
          ? "mpi_implementation '" + options.mpi_implementation + "'"
      : options.flight_folder.empty() ? ""
                                      : "flight_folder '" + options.flight_folder + "'";
  if (!collective.empty()) {
    return InvalidArgument(collective +
                           " under a parameter server, whose processes have no collectives [leave "
                           "it out, or use a synchronous strategy]");
  }
  if (options.grad_scaler.has_value()) {
    return InvalidArgument(
        "grad_scaler under a parameter server, whose workers agree on no step to skip [train with "
        "bfloat16 or float32, or use a synchronous strategy]");
  }
  COHORT_RETURN_IF_ERROR(options.partitioner.Check());
  COHORT_ASSIGN_OR_RETURN(auto job, ps::Job::Join(config, options));
  try {
    return std::unique_ptr<ParameterServerStrategy>(
        std::make_unique<Implementation>(std::move(job), options));
  } catch (const StatusError& error) {
    return error.status();  // a device has no stream for it
  }
}

}  // namespace cohort
