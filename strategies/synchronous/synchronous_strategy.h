// SynchronousStrategy: OneDevice, Mirrored and MultiWorkerMirrored. See
// cohort/strategies/synchronous.h for what they share, reducer.h for how gradients meet.
//
// One step: every replica of the process runs the step function on its part (replica 0 on the
// caller's thread). When all have returned, nobody reads the parameters any more: each bucket is
// applied as it lands, the work cut among the replicas' threads by chunks. Loss and metrics are
// added up in double in a small collective of their own, behind the last bucket.

#pragma once

#include <array>
#include <atomic>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include <cohort/strategies/strategy.h>

#include "synchronous/membership.h"
#include "synchronous/reducer.h"
#include "synchronous/replica_gang.h"
#include "synchronous/span_reduction.h"

namespace cohort {

class SynchronousStrategy final : public Strategy {
 public:
  static Result<std::unique_ptr<Strategy>> Make(std::string kind, ClusterConfig cluster,
                                                std::unique_ptr<Membership> membership,
                                                StrategyOptions options);

  // InvalidArgument names an option that is out of its range.
  static Status CheckOptions(const StrategyOptions& options);

  std::string_view kind() const override { return kind_; }
  const ClusterConfig& cluster() const override { return cluster_; }
  bool is_chief() const override { return rank_ == 0; }
  int num_replicas_in_sync() const override { return num_processes_ * gang_.size(); }
  int num_local_replicas() const override { return gang_.size(); }

  Status Bind(ParameterSet& parameters, std::unique_ptr<Optimizer> optimizer) override;
  Result<std::unique_ptr<DistributedDataset>> Distribute(const data::Dataset& dataset,
                                                         const InputOptions& options) override;
  Result<StepResult> Step(const DistributedBatch& batch, const StepFn& fn) override;
  Result<StepResult> Evaluate(const DistributedBatch& batch, const StepFn& fn) override;
  Status ReduceGradients(std::span<const std::span<float>> gradients, double weight) override;
  Status Broadcast(std::span<std::byte> bytes) override;
  Result<Mirrored<Tensor>> Reduce(ReduceOp op, const PerReplica<Tensor>& value) override;
  Result<Mirrored<Tensor>> Gather(const PerReplica<Tensor>& value) override;

  const Optimizer* optimizer() const override { return optimizer_.get(); }
  std::span<const std::span<float>> slots() override { return slots_; }
  std::int64_t step() const override { return step_; }
  Status SetStep(std::int64_t step) override;

  Status Barrier(std::string_view name) override;
  void ReportError(const Status& error) override { membership_->GiveUp(error); }
  Status Shutdown() override { return membership_->Leave(); }

 private:
  // Loss, weight and metrics of some replicas, as they travel: sums, so that they add up.
  static constexpr std::size_t kMaxMetrics = 28;
  struct Totals {
    std::array<double, 4 + kMaxMetrics> sums{};
    double& loss() { return sums[0]; }
    double& weight() { return sums[1]; }
    double& replicas() { return sums[2]; }  // that had any weight
    double& metrics() { return sums[3]; }   // how many, of each of those: must divide
    double* metric() { return sums.data() + 4; }
  };
  // What a replica's part of a step came to.
  struct Outcome {
    Status status;
    std::exception_ptr exception;
    ReplicaResult result;
  };

  SynchronousStrategy(std::string kind, ClusterConfig cluster,
                      std::unique_ptr<Membership> membership, StrategyOptions options);

  void RunReplica(int replica, const data::Batch& part, const StepFn& fn, bool train);
  Status RunReplicas(const DistributedBatch& batch, const StepFn& fn, bool train, Totals& totals);
  void CheckResult(int replica, const ReplicaResult& result, bool train) const;
  Status ApplyAsLanded(int& applied);
  void Apply(std::size_t first_chunk, std::size_t last_chunk, float scale);
  float ClippedScale(float scale);
  float GradientScale(double weight) const;
  Result<std::unique_ptr<Work>> AddUp(Totals& totals, const std::string& name);
  Status SettleTogether(Totals& totals, int& applied);
  Communicator::Pending SendState();
  void TakeState();
  Result<StepResult> Finish(Totals& totals) const;
  Status Fail(const Status& status);
  // Waits for an operation of the job; tells why it failed.
  Status Meet(Communicator::Pending pending);
  Status Compare(std::string_view what, const std::vector<std::string>& lines,
                 std::string_view hint);
  void ForChunks(std::size_t first, std::size_t last,
                 const std::function<void(std::size_t chunk)>& fn);
  std::string NameOf(int replica) const;

  const std::string kind_;
  const ClusterConfig cluster_;
  const StrategyOptions options_;
  const std::unique_ptr<Membership> membership_;
  Communicator* const communicator_;  // nullptr: alone
  const int rank_;
  const int num_processes_;
  ReplicaGang gang_;
  int intra_op_threads_ = 1;

  ParameterSet* parameters_ = nullptr;
  std::unique_ptr<Optimizer> optimizer_;
  std::vector<Tensor> slot_arenas_;
  std::vector<std::span<float>> slots_;
  std::vector<std::unique_ptr<Stream>> streams_;  // by local replica
  std::unique_ptr<Reducer> reducer_;
  std::unique_ptr<SpanReduction> span_reduction_;
  std::vector<Outcome> outcomes_;  // by local replica
  std::vector<double> squares_;    // by chunk
  std::vector<int> untrained_;     // the parameters that are not trainable
  std::vector<float> state_;       // their values, as rank 0 sends them
  std::int64_t step_ = 0;
  Status broken_;  // not OK: a step was applied in part
};

}  // namespace cohort
