#include "multi_worker/row_server.h"

#include <utility>

#include <cohort/optim/server_side.h>

#include "parameter_server/dataset.h"
#include "parameter_server/job.h"

namespace cohort {
namespace {

class RowServer final : public Strategy {
 public:
  RowServer(std::string kind, std::unique_ptr<ps::Job> job)
      : kind_(std::move(kind)), job_(std::move(job)) {}

  std::string_view kind() const override { return kind_; }
  const ClusterConfig& cluster() const override { return job_->config(); }
  bool is_chief() const override { return false; }
  int num_replicas_in_sync() const override { return static_cast<int>(job_->workers().size()); }
  int num_local_replicas() const override { return 1; }
  bool trains() const override { return false; }
  bool evaluates() const override { return false; }

  Status Bind(ParameterSet& parameters, std::unique_ptr<Optimizer> optimizer) override {
    Require(optimizer_ == nullptr, "Bind once");
    Require(parameters.built() && optimizer != nullptr, "built parameters and an optimizer");
    COHORT_RETURN_IF_ERROR(RefuseServerSide(*optimizer, kind_));
    if (parameters.tables().empty()) {
      return FailedPrecondition(cluster().task.ToString() + " under " + kind_ +
                                " holds sparse tables, and the model has none [start without ps "
                                "tasks, or use parameter_server]");
    }
    const ps::ModelSpec model =
        ps::ModelSpec::OfTables(parameters, optimizer->config(), job_->num_servers());
    for (const TableSpec& table : model.tables) {
      COHORT_RETURN_IF_ERROR(RefuseLateRows(table, kind_));
    }
    COHORT_RETURN_IF_ERROR(job_->server()->Declare(model, cluster().task.ToString()));
    optimizer_ = std::move(optimizer);
    return {};
  }
  Status Serve() override {
    Require(optimizer_ != nullptr, "Bind before Serve");
    return job_->ServeVariables();
  }
  Result<std::unique_ptr<DistributedDataset>> Distribute(const data::Dataset& /*dataset*/,
                                                         const InputOptions& /*options*/) override {
    return ps::MakeEmptyDataset();
  }
  Result<StepResult> Step(const DistributedBatch& /*batch*/, const StepFn& /*fn*/) override {
    throw ContractError("Step where trains() holds");
  }
  Result<StepResult> Evaluate(const DistributedBatch& /*batch*/, const StepFn& /*fn*/) override {
    throw ContractError("Evaluate where evaluates() holds");
  }
  Status ReduceGradients(std::span<const std::span<float>> /*gradients*/,
                         double /*weight*/) override {
    throw ContractError("ReduceGradients where trains() holds");
  }
  // What the workers share among themselves is not for servers.
  Status Broadcast(std::span<std::byte> /*bytes*/) override { return {}; }
  Result<Mirrored<Tensor>> Reduce(ReduceOp /*op*/, const PerReplica<Tensor>& value) override {
    return Mirrored<Tensor>{value.values.at(0)};
  }
  Result<Mirrored<Tensor>> Gather(const PerReplica<Tensor>& value) override {
    return Mirrored<Tensor>{value.values.at(0)};
  }

  const Optimizer* optimizer() const override { return optimizer_.get(); }
  std::span<const std::span<float>> slots() override { return {}; }
  std::int64_t step() const override { return 0; }
  Status SetStep(std::int64_t /*step*/) override { return {}; }

  Status Barrier(std::string_view /*name*/) override { return {}; }
  void ReportError(const Status& error) override { job_->ReportError(error); }
  Status Shutdown() override { return job_->Leave(); }

 private:
  const std::string kind_;
  const std::unique_ptr<ps::Job> job_;
  std::unique_ptr<Optimizer> optimizer_;
};

}  // namespace

Result<std::unique_ptr<Strategy>> MakeRowServer(std::string kind, const ClusterConfig& config,
                                                const StrategyOptions& options) {
  StrategyOptions of_server = options;
  of_server.num_devices = 1;  // those are of workers
  of_server.devices.clear();
  COHORT_ASSIGN_OR_RETURN(auto job, ps::Job::Join(config, of_server, kind));
  return std::unique_ptr<Strategy>(std::make_unique<RowServer>(std::move(kind), std::move(job)));
}

}  // namespace cohort
