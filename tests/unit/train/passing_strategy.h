// PassingStrategy: the strategy of a test's process alone, for those that differ from it in a call.
#pragma once

#include <cohort/strategies/strategy.h>

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace cohort::testing {

class PassingStrategy : public Strategy {
 public:
  explicit PassingStrategy(Strategy& inner) : inner_(inner) {}
  std::string_view kind() const override { return inner_.kind(); }
  const ClusterConfig& cluster() const override { return inner_.cluster(); }
  bool is_chief() const override { return true; }
  int num_replicas_in_sync() const override { return inner_.num_replicas_in_sync(); }
  int num_local_replicas() const override { return inner_.num_local_replicas(); }
  Status Bind(ParameterSet& parameters, std::unique_ptr<Optimizer> optimizer) override {
    return inner_.Bind(parameters, std::move(optimizer));
  }
  Result<std::unique_ptr<DistributedDataset>> Distribute(const data::Dataset& dataset,
                                                         const InputOptions& options) override {
    return inner_.Distribute(dataset, options);
  }
  Result<StepResult> Step(const DistributedBatch& batch, const StepFn& fn) override {
    return inner_.Step(batch, fn);
  }
  Result<StepResult> Evaluate(const DistributedBatch& batch, const StepFn& fn) override {
    return inner_.Evaluate(batch, fn);
  }
  Status ReduceGradients(std::span<const std::span<float>> gradients, double weight) override {
    return inner_.ReduceGradients(gradients, weight);
  }
  Status Broadcast(std::span<std::byte> bytes) override { return inner_.Broadcast(bytes); }
  Result<Mirrored<Tensor>> Reduce(ReduceOp op, const PerReplica<Tensor>& value) override {
    return inner_.Reduce(op, value);
  }
  Result<Mirrored<Tensor>> Gather(const PerReplica<Tensor>& value) override {
    return inner_.Gather(value);
  }
  const Optimizer* optimizer() const override { return inner_.optimizer(); }
  std::span<const std::span<float>> slots() override { return inner_.slots(); }
  std::int64_t step() const override { return inner_.step(); }
  Status SetStep(std::int64_t step) override { return inner_.SetStep(step); }
  Status Barrier(std::string_view name) override { return inner_.Barrier(name); }
  Result<std::string> DumpFlightRecord(std::string_view reason) const override {
    return inner_.DumpFlightRecord(reason);
  }
  void ReportError(const Status& error) override { inner_.ReportError(error); }
  Status Shutdown() override { return inner_.Shutdown(); }

 private:
  Strategy& inner_;
};

}  // namespace cohort::testing
