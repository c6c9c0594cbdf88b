// RemoteStrategy: what the public ParameterServerStrategy is in every process of a job: in a worker
// the step, which computes here and updates on the servers; in the chief what it does while others
// train; in a server its service.
//
// How processes meet and what becomes of lost ones is Job's, saving ChiefSaves', the data's parts
// those of dataset.h. This has them work together: a call that fails is looked at in GoOn, which
// says whether the job goes on, and whether what was begun still stands.
//
// The class is in three files: remote_strategy_step.cc is the step, remote_strategy_calls.cc what
// is different where the chief calls functions, remote_strategy.cc the rest.
//
// Thread rules: those of Strategy; lookups of rows come on the replica's stream (remote_rows.h). In
// a chief that calls functions the threads that wait for these see to lost servers, and save, one
// at a time (recovery_mutex_); of what else it does beside, PullState, PushState, LoadTable and the
// begin of an evaluation exclude that.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <cohort/strategies/coordinator.h>
#include <cohort/strategies/parameter_server.h>

#include "parameter_server/chief/progress_line.h"
#include "parameter_server/chief_saves.h"
#include "parameter_server/dataset.h"
#include "parameter_server/device_replica.h"
#include "parameter_server/fixed_values.h"
#include "parameter_server/job.h"
#include "parameter_server/local_sink.h"
#include "parameter_server/remote_rows.h"
#include "parameter_server/rows/bucket_balancer.h"

namespace cohort {

class RemoteStrategy final : public ParameterServerStrategy {
 public:
  RemoteStrategy(std::unique_ptr<ps::Job> job, StrategyOptions options);

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
  Status Broadcast(std::span<std::byte> bytes) override;
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
  Status SaveTable(int table, FileSystem& files, const std::string& path) override {
    return saves_.SaveTable(table, files, path);
  }
  Status LoadTable(int table, FileSystem& files, const std::vector<std::string>& chain) override;
  std::optional<std::int64_t> rows_saved_at() const override { return saves_.rows_saved_at(); }
  Status SaveTableChanges(int table, FileSystem& files, const std::string& path) override {
    return saves_.SaveTableChanges(table, files, path);
  }
  Status StopWork(const std::string& why) override;
  bool SaveBetweenUpdates(SavePlan plan) override {
    if (is_chief()) {
      saves_.SetPlan(std::move(plan));
    }
    return true;
  }

  Status Barrier(std::string_view /*name*/) override { return {}; }
  void ReportError(const Status& error) override { job_->ReportError(error); }
  Status Shutdown() override;

  Result<std::unique_ptr<Coordinator>> MakeCoordinator(const ScheduleOptions& options) override;
  Status ServeFunctions(const Functions& functions) override;

  std::vector<EpochCoverage> coverage() const override {
    return is_chief() ? std::as_const(*job_).scheduler()->coverage() : std::vector<EpochCoverage>();
  }
  const Consistency& consistency() const override { return options_.consistency; }
  Result<ParameterServerStats> stats() override;
  void CountIn(Metrics& metrics) override {
    if (job_->is_server()) {
      job_->server()->CountIn(metrics);
    }
  }

 private:
  // remote_strategy.cc: the job, and what it begins with.
  Result<ps::ModelSpec> ModelOf(const ParameterSet& parameters, const Optimizer& optimizer) const;
  Status GiveValues();
  Status AssignState();
  Status TakeValues();
  Status MakeReplica(ParameterSet& parameters);
  Status OpenData();
  Result<Mirrored<Tensor>> Local(const PerReplica<Tensor>& value) const;
  ps::Feed MakeFeed();
  // While it runs.
  Status Outlast(const std::function<Status()>& look);
  Status GoOnAfter(const Status& error, std::uint64_t seen, Deadline deadline);
  Status GoOn(const Status& error);
  Status Surviving(const std::function<Status()>& fn);
  Status Look();
  void ShowProgress();
  Status FinishLastRound();
  Status Refresh(bool everything);

  // remote_strategy_calls.cc: where the chief calls functions.
  bool goes_back() const;
  Status SaveCalls(const Coordinator::SaveFn& save, Deadline deadline);
  Status NotWhileItSaves(const char* what) const;
  Result<std::unique_lock<std::timed_mutex>> LockRecovery(const char* what, Deadline deadline);
  Status SurvivingCalls(const char* what, const std::function<Status()>& fn);
  Status RecoverCalls(const Status& error, std::uint64_t seen);
  Status MatchRows();
  Status PushBetweenCalls();
  bool saves_here() const { return saver_ == std::this_thread::get_id(); }
  bool restores_here() const { return restorer_ == std::this_thread::get_id(); }
  Result<bool> BeginCall(std::uint64_t epoch);

  // remote_strategy_step.cc: a step.
  Result<StepResult> StepThrough(const DistributedBatch& batch, const StepFn& fn);
  // The result of one pass over `part`, which leaves gradients in sink_ if `train`.
  Result<ReplicaResult> Run(const data::Batch& part, const StepFn& fn, bool train);
  Status Drain();
  Result<StepResult> StepAlone(const data::Batch& part, const StepFn& fn);
  double Clip(double weight);
  Result<bool> Persist(const std::function<Status()>& fn);
  Status PushAlone(std::int64_t row_step, double weight, double clip);
  Result<StepResult> StepTogether(const DistributedBatch& batch, const StepFn& fn);
  Status TakeRound(std::uint64_t round);
  Status PushPart(const ps::RoundPart& part, const ReplicaResult& mine);
  ps::Commit SetElected(const ps::RoundCommit& commit);
  Status CatchUp(const ps::RoundCommit& commit);
  Status Idle();
  int LookaheadDepth() const;
  void LookAhead(std::uint64_t round, std::int64_t step);
  std::uint64_t RoundsToSee() const;
  double PushWeight(double weight) const;
  void RestoreFixedValues();
  StepResult ResultOf(const ps::RoundSums& sums) const;
  // As ModelSpec::elects.
  bool elects() const {
    return options_.consistency.synchronous() &&
           (backs_up() || options_.server_loss == ServerLoss::kReplica);
  }
  bool backs_up() const { return options_.consistency.backup_workers > 0; }
  bool global_mean() const { return options_.loss_scale == LossScale::kGlobalMean; }

  bool apart() const { return device_->memory_space() == MemorySpace::kDevice; }
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
  std::unique_ptr<ps::FixedValues> fixed_;  // in a process that trains
  std::int64_t step_ = 0;
  bool fresh_ = false;                  // have values been pulled since the job began?
  int datasets_ = 0;                    // distributed for training
  std::optional<ps::RoundPart> round_;  // of the batch that was handed out last
  ps::FinishedSplit finished_;          // what the steps of the current split came to
  ps::ChiefSaves saves_;
  ps::BucketBalancer balancer_;
  ps::ProgressLine progress_{std::chrono::steady_clock::now()};
  std::uint64_t batch_ = 0;              // number of the one that was handed out last
  std::vector<ps::NumberedBatch> next_;  // behind that, as far as they are known
  bool idle_ = true;                     // no step since the last piece of work began
  int roll_backs_ = 0;
  std::timed_mutex recovery_mutex_;            // of the chief
  std::atomic<std::uint64_t> recoveries_ = 0;  // there
  std::atomic<std::uint64_t> restores_ = 0;    // there: of values, of some servers or all
  std::uint64_t refreshed_after_ = 0;          // so many, when all values were pulled last
  std::uint64_t pulled_after_ = 0;             // and when slots were, with them
  std::atomic<std::thread::id> saver_{};       // the thread that is in Coordinator::Save, there
  std::atomic<std::thread::id> restorer_{};    // that brings servers what they go back to, there
  bool work_stands_ = false;                   // after GoOn
  bool void_ = false;       // the batch, or call, that was handed out last, by a roll-back since
  bool own_error_ = false;  // of the step function, or that servers do not come back
  bool functions_ = false;  // are called, instead of data, in the chief; in a worker, are run
  bool stopped_ = false;    // the scheduler hands out nothing more
  bool began_ = false;      // Serve was called, or the first epoch begun
};

}  // namespace cohort
