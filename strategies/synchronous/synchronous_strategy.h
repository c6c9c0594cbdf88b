// SynchronousStrategy: OneDevice, Mirrored and MultiWorkerMirrored. See
// cohort/strategies/synchronous.h for what they share, reducer.h for how gradients meet.
//
// One step: every replica of the process runs the step function on its part (replica 0 on the
// caller's thread). When all have returned, nobody reads the parameters any more: each bucket is
// applied as it lands, the work cut among the replicas' threads by chunks. Loss and metrics are
// added up in double in a small collective of their own, behind the last bucket.
//
// What has a state of its own is a class: StepTotals, UntrainedValues (running averages), Updater,
// BucketAgreement, Reducer. The strategy puts them in order: Bind and what all processes do
// together in synchronous_strategy.cc, options in options.cc, data in synchronous_input.cc,
// replicas in synchronous_replicas.cc, a step in synchronous_step.cc, the way on after a loss in
// synchronous_recovery.cc.
//
// With virtual shards, a REPLICA, as the program sees it, is a shard of the global batch: a process
// has V/W of them, which its L threads run one after the other, each its own run of them.

#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <cohort/strategies/bucket_hook.h>
#include <cohort/strategies/strategy.h>

#include "synchronous/bucket_agreement.h"
#include "synchronous/cross_device_ops.h"
#include "synchronous/device_copy.h"
#include "synchronous/membership.h"
#include "synchronous/reducer.h"
#include "synchronous/replica_gang.h"
#include "synchronous/span_reduction.h"
#include "synchronous/step_rows.h"
#include "synchronous/step_totals.h"
#include "synchronous/untrained_values.h"
#include "synchronous/updater.h"

namespace cohort {

class SynchronousStrategy final : public Strategy {
 public:
  static Result<std::unique_ptr<Strategy>> Make(std::string kind, ClusterConfig cluster,
                                                std::unique_ptr<Membership> membership,
                                                StrategyOptions options);

  ~SynchronousStrategy() override;

  // InvalidArgument names an option that is out of its range, for a job of so many processes.
  static Status CheckOptions(const StrategyOptions& options, int processes = 1);
  // The same for what this communicator, nullptr: none, can do or not.
  static Status CheckAlgorithm(const StrategyOptions& options, const Communicator* communicator);

  std::string_view kind() const override { return kind_; }
  const ClusterConfig& cluster() const override { return cluster_; }
  bool is_chief() const override { return rank_ == 0; }
  int num_replicas_in_sync() const override { return num_processes_ * local_replicas_; }
  int num_local_replicas() const override { return local_replicas_; }
  InputContext input_context() const override {
    return {.num_input_pipelines = num_processes_, .input_pipeline_id = rank_};
  }
  data::ShardPolicy PolicyFor(const data::Dataset& dataset,
                              data::ShardPolicy policy) const override;

  Status Bind(ParameterSet& parameters, std::unique_ptr<Optimizer> optimizer) override;
  Result<std::unique_ptr<DistributedDataset>> Distribute(const data::Dataset& dataset,
                                                         const InputOptions& options) override;
  Result<StepResult> Step(const DistributedBatch& batch, const StepFn& fn) override;
  Result<StepResult> Accumulate(const DistributedBatch& batch, const StepFn& fn) override;
  Result<StepResult> Evaluate(const DistributedBatch& batch, const StepFn& fn) override;
  Status ReduceGradients(std::span<const std::span<float>> gradients, double weight) override;
  Status Broadcast(std::span<std::byte> bytes) override;
  Result<Mirrored<Tensor>> Reduce(ReduceOp op, const PerReplica<Tensor>& value) override;
  Result<Mirrored<Tensor>> Gather(const PerReplica<Tensor>& value) override;

  const Optimizer* optimizer() const override { return optimizer_.get(); }
  std::span<const std::span<float>> slots() override { return slots_; }
  std::int64_t step() const override { return step_; }
  GradScaler* grad_scaler() override { return scaler_.has_value() ? &*scaler_ : nullptr; }
  Status intact() const override { return broken_; }
  Status SetStep(std::int64_t step) override;
  Status PullState() override;
  Status PushState() override;
  Status SaveTable(int table, FileSystem& files, const std::string& path) override;
  Status SaveTableChanges(int table, FileSystem& files, const std::string& path) override;
  Result<bool> FreezeTables() override;
  Status ThawTables(bool saved) override;
  std::optional<std::int64_t> rows_saved_at() const override {
    return rows_ == nullptr ? std::nullopt : rows_->saved_at();
  }
  Status LoadTable(int table, FileSystem& files, const std::vector<std::string>& chain) override;

  bool joined_in_training() const override { return membership_->joined_in_training(); }
  Result<bool> BeginTraining() override;
  Status EndTraining() override;
  Status Recover(const Status& error, const WayBack& way) override;

  Status Barrier(std::string_view name) override;
  Result<std::string> DumpFlightRecord(std::string_view reason) const override;
  void ReportError(const Status& error) override { membership_->EndJob(error); }
  Status Shutdown() override;

 private:
  // What a replica's part of a step came to.
  struct Outcome {
    Status status;
    std::exception_ptr exception;
    ReplicaResult result;
  };

  SynchronousStrategy(std::string kind, ClusterConfig cluster,
                      std::unique_ptr<Membership> membership, StrategyOptions options);

  enum class Purpose { kTrain, kEvaluate };
  enum class Cause { kOwn, kAny };  // of an error; kOwn: neither a server nor another process

  void MakeSpanReduction();
  Status BindTo(ParameterSet& parameters, const Optimizer& optimizer);
  void LetGo();
  Status MeetAgain(ParameterSet& parameters, const Optimizer& optimizer);
  Status BindAgain(ParameterSet& parameters, const Optimizer& optimizer);
  Status MakeCopies(ParameterSet& parameters);
  Status ChooseCrossDevice();
  Status ChooseOneBucket();
  std::string OrderedAlgorithm() const;
  std::string SumsAlgorithm() const;
  bool SumsAreTheSameHoweverCut() const;
  Status MakeReducer(ParameterSet& parameters);
  void MakeParts(ParameterSet& parameters, const Optimizer& optimizer);
  DeviceCopy* copy_of(int thread) const {
    return copy_of_.empty() ? nullptr : copy_of_[static_cast<std::size_t>(thread)];
  }
  // A replica's part, on thread `thread`, as its `turn`-th.
  void RunTurn(int thread, int turn, const data::Batch& part, const StepFn& fn, Purpose purpose);
  Result<ReplicaResult> Call(int thread, int replica, const data::Batch& part, const StepFn& fn,
                             Purpose purpose);
  Status RunReplicas(const DistributedBatch& batch, const StepFn& fn, Purpose purpose,
                     StepTotals& totals);
  void CheckResult(int thread, const ReplicaResult& result, Purpose purpose) const;
  Status RunPass(const DistributedBatch& batch, const StepFn& fn, bool sent, StepTotals* pass);
  Status CheckRows(const ParameterSet& parameters) const;
  Status BindRows(const ParameterSet& parameters, const Optimizer& optimizer);
  Status ExplainServers(const Status& status);
  double RowDivisor();
  Status UpdateRows();
  // Do rows wait for the parameters' gradients, with which they may be skipped?
  bool holds_rows() const { return scaler_.has_value() && rows_ != nullptr; }
  Status UpdateAlone();
  Status UpdateAtOnce(float scale);
  Status LandInOrder(Work* behind, float& scale, int& applied);
  // Waits, and counts the time.
  Status Expose(const std::function<Status()>& wait);
  float GradientScale(double weight) const;
  float ScaleOfSums() const;
  Result<std::unique_ptr<Work>> AddUp(StepTotals& totals, const std::string& name);
  Status SettleTogether(int& applied);
  Result<StepResult> Finish(const StepTotals& totals) const;
  Status Fail(const Status& status, Cause cause = Cause::kAny);
  // Of a data set whose examples are this process's own: the batches that all have.
  Result<std::int64_t> AgreeOnBatches(const data::Dataset& dataset,
                                      const data::IterateOptions& part);
  // Waits for an operation of the job; tells why it failed.
  Status Meet(Communicator::Pending pending);
  Status Compare(std::string_view what, const std::vector<std::string>& lines,
                 std::string_view hint);
  std::string NameOf(int replica) const;

  const std::string kind_;
  const ClusterConfig cluster_;
  const StrategyOptions options_;
  const std::unique_ptr<Membership> membership_;
  Communicator* communicator_;  // nullptr: alone; another one after Recover
  int rank_;                    // as that of the communicator
  int num_processes_;           // as those of the communicator
  ReplicaGang gang_;
  const int turns_;           // of each of the gang's threads: its virtual shards, or 1
  const int local_replicas_;  // threads * turns
  int intra_op_threads_ = 1;

  std::vector<std::shared_ptr<Device>> devices_;  // by thread; owners: this and the program
  ParameterSet* parameters_ = nullptr;
  std::unique_ptr<Optimizer> optimizer_;
  std::vector<Tensor> slot_arenas_;
  std::vector<std::span<float>> slots_;
  std::vector<std::unique_ptr<Stream>> streams_;  // by thread
  // Where a device's memory is apart from the host's: of each device, and by thread. Otherwise
  // empty: the bound parameters and slots_ are what is trained.
  std::vector<std::unique_ptr<DeviceCopy>> copies_;
  std::vector<DeviceCopy*> copy_of_;
  std::vector<std::unique_ptr<Kernels>> kernels_;     // by thread, for its stream
  std::vector<std::shared_ptr<Event>> copies_ready_;  // what replicas wait for before they begin
  // Of who makes the next one anew, or the communicator, and DumpFlightRecord.
  mutable std::mutex cross_device_mutex_;
  CrossDeviceOps cross_device_;
  int bindings_ = 0;  // that were begun
  std::unique_ptr<BucketHook> hook_;
  std::unique_ptr<StepRows> rows_;                      // where the model has tables
  std::function<const DistributedBatch*()> peek_next_;  // the batch after the one handed out
  std::unique_ptr<Reducer> reducer_;
  BucketLimits limits_;      // of the first steps
  bool one_bucket_ = false;  // which follows the backward pass, see Reducer
  std::unique_ptr<SpanReduction> span_reduction_;
  std::vector<Outcome> outcomes_;  // by local replica
  StepTotals totals_;              // of the step under way, with what was accumulated for it
  int passes_ = 0;                 // that it has had
  double exposed_seconds_ = 0;     // that it waited for others
  std::optional<GradScaler> scaler_;
  bool skipped_ = false;     // the step under way was
  double usual_weight_ = 1;  // of a replica's part of a batch, about: a power of two
  std::int64_t step_ = 0;
  // Of the bound parameters.
  std::optional<UntrainedValues> untrained_;
  std::optional<Updater> updater_;
  std::optional<BucketAgreement> agreement_;
  Status broken_;             // not OK: a step was applied in part
  bool rows_loaded_ = false;  // by LoadTable
  // In the chief, from BeginTraining on, where a loss need not end the job.
  struct Beginning {
    bool fresh = false;         // nothing but `values` makes it what it was
    std::vector<float> values;  // of the parameters, if so
  };
  std::optional<Beginning> beginning_;
  bool may_recover_ = false;  // BeginTraining has said so
};

}  // namespace cohort
