#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <mutex>
#include <utility>

#include <cohort/core/thread_pool.h>
#include <cohort/optim/gradients.h>
#include <cohort/rpc/coordination.h>
#include <cohort/strategies/parameter_server.h>

#include "parameter_server/client.h"
#include "parameter_server/coordinator.h"
#include "parameter_server/dataset.h"
#include "parameter_server/functions.h"
#include "parameter_server/local_sink.h"
#include "parameter_server/server.h"
#include "parameter_server/wire.h"
#include "synchronous/cores.h"

namespace cohort {
namespace {

using std::chrono::milliseconds;

// How often a process that serves looks whether the job is healthy.
constexpr milliseconds kLook{200};
constexpr char kCoordinatorKey[] = "parameter_server/coordinator";
// The most that Broadcast sends; variables and slots go through the servers.
constexpr std::size_t kMaxBroadcastBytes = std::size_t{256} << 10;
constexpr char kInitialisedKey[] = "parameter_server/initialised";
std::string ServerKey(int server) { return "parameter_server/address/" + std::to_string(server); }

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

Status CheckConfig(const ClusterConfig& config, const StrategyOptions& options) {
  const ClusterSpec& cluster = config.cluster;
  if (cluster.Count(TaskType::kPs) == 0 || cluster.Count(TaskType::kWorker) == 0) {
    return InvalidArgument(
        "parameter_server needs a cluster with ps and worker tasks; this one (" + config.source +
        ") has " + std::to_string(cluster.Count(TaskType::kPs)) + " ps and " +
        std::to_string(cluster.Count(TaskType::kWorker)) +
        " workers [cohort launch -n 2 --ps 2 --chief -- PROGRAM, or a TF_CONFIG with \"ps\"]");
  }
  for (int s = 0; s < cluster.Count(TaskType::kPs); ++s) {
    if (!cluster.Contains({TaskType::kPs, s})) {
      return InvalidArgument("ps tasks are numbered without gaps; there is no ps:" +
                             std::to_string(s) + " [name every ps in the cluster]");
    }
  }
  if (!cluster.Contains(config.task)) {
    return InvalidArgument(config.task.ToString() + " is no task of the cluster");
  }
  if (options.num_devices != 1) {
    return InvalidArgument("parameter_server trains one replica per worker, num_devices is " +
                           std::to_string(options.num_devices) + " [start more workers instead]");
  }
  return {};
}

class Implementation final : public ParameterServerStrategy {
 public:
  Implementation(ClusterConfig config, StrategyOptions options)
      : config_(std::move(config)),
        options_(std::move(options)),
        chief_(config_.cluster.Chief()),
        workers_(config_.cluster.TrainingTasks()),
        num_servers_(config_.cluster.Count(TaskType::kPs)),
        stream_(options_.make_stream ? options_.make_stream() : MakeInlineStream()),
        intra_op_threads_(options_.intra_op_threads > 0 ? options_.intra_op_threads
                                                        : CoresPerReplica(config_, 1)) {}

  Status Join();

  std::string_view kind() const override { return "parameter_server"; }
  const ClusterConfig& cluster() const override { return config_; }
  bool is_chief() const override { return config_.task == chief_; }
  int num_replicas_in_sync() const override {
    return options_.synchronous_parameter_server ? static_cast<int>(workers_.size()) : 1;
  }
  int num_local_replicas() const override { return 1; }
  bool trains() const override { return config_.task.type == TaskType::kWorker; }
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

  Status Barrier(std::string_view /*name*/) override { return {}; }
  void ReportError(const Status& error) override {
    if (coordination_ != nullptr && !error.ok()) {
      // If nobody can be told, nobody is there.
      (void)coordination_->ReportError(error);
    }
  }
  Status Shutdown() override;

  Result<std::unique_ptr<Coordinator>> MakeCoordinator(const ScheduleOptions& options) override;
  Status ServeFunctions(const Functions& functions) override;

  std::vector<EpochCoverage> coverage() const override {
    return coordinator_ == nullptr ? std::vector<EpochCoverage>() : coordinator_->coverage();
  }
  Result<ParameterServerStats> stats() override;

 private:
  bool may_leave() const { return trains() && !is_chief(); }
  bool global_mean() const { return options_.loss_scale == LossScale::kGlobalMean; }
  int rank() const {
    return static_cast<int>(std::find(workers_.begin(), workers_.end(), config_.task) -
                            workers_.begin());
  }

  Status StartServices();
  Status Publish();
  Status FindServers();
  // What the job knows of the reason for `status`.
  Status Explain(const Status& status) const;
  void Fail(const Status& why);
  Result<Mirrored<Tensor>> Local(const PerReplica<Tensor>& value) const;

  Status ServeVariables();
  Status Coordinate();
  void OpenData();
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

  const ClusterConfig config_;
  const StrategyOptions options_;
  const TaskId chief_;
  const std::vector<TaskId> workers_;
  const int num_servers_;
  const std::unique_ptr<Stream> stream_;
  const int intra_op_threads_;

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
  bool left_ = false;
  bool began_ = false;  // Serve was called, or the first epoch begun
  int broadcasts_ = 0;

  // Services of this process; the state before what serves it.
  std::unique_ptr<ps::Coordinator> coordinator_;
  std::unique_ptr<CoordinationServer> coordination_server_;
  std::unique_ptr<ps::CoordinatorServer> coordinator_server_;
  std::unique_ptr<ps::Server> server_;

  std::vector<std::string> server_addresses_;
  std::mutex failure_mutex_;  // guards failure_, and the pointers against Fail
  Status failure_;
  std::unique_ptr<ps::Client> client_;
  std::unique_ptr<ps::CoordinatorClient> coordinator_client_;
  // Last: its callbacks use the above.
  std::unique_ptr<CoordinationClient> coordination_;
};

// ---- Joining and leaving ------------------------------------------------------------------------

Status Implementation::StartServices() {
  if (config_.task.type == TaskType::kPs) {
    COHORT_ASSIGN_OR_RETURN(
        server_, ps::Server::Start(ps::ListenAddress(config_.cluster.Address(config_.task)),
                                   config_.task.index, options_.log));
  }
  if (is_chief()) {
    coordinator_ = std::make_unique<ps::Coordinator>(ps::CoordinatorOptions{
        .workers = workers_, .rejoin_timeout = options_.join_timeout, .log = options_.log});
    COHORT_ASSIGN_OR_RETURN(coordinator_server_,
                            ps::CoordinatorServer::Start("0.0.0.0:0", *coordinator_));
  }
  return {};
}

Status Implementation::Join() {
  COHORT_RETURN_IF_ERROR(StartServices());
  CoordinationOptions options;
  options.join_timeout = options_.join_timeout;
  options.heartbeat_timeout = options_.heartbeat_timeout;
  options.heartbeat_interval = std::min(options.heartbeat_interval, options_.heartbeat_timeout / 5);
  options.may_leave = [chief = chief_](const TaskId& task) {
    return task.type == TaskType::kWorker && task != chief;
  };
  options.log = options_.log;
  const std::string address =
      config_.rendezvous.empty() ? config_.cluster.Address(chief_) : config_.rendezvous;
  if (is_chief()) {
    COHORT_ASSIGN_OR_RETURN(
        coordination_server_,
        CoordinationServer::Start(ps::ListenAddress(address), config_.cluster, options));
    coordination_server_->OnTaskLost(
        [coordinator = coordinator_.get()](const TaskId& task, const Status& why) {
          if (task.type == TaskType::kWorker) {
            coordinator->Lost(task, why);
          }
        });
  }
  COHORT_ASSIGN_OR_RETURN(coordination_,
                          CoordinationClient::Join(address, config_.cluster, config_.task,
                                                   /*wait_for_all=*/true, options));
  coordination_->OnFailure([this](const Status& why) { Fail(why); });
  COHORT_RETURN_IF_ERROR(Publish());
  if (config_.task.type == TaskType::kPs) {
    return {};
  }
  COHORT_RETURN_IF_ERROR(FindServers());
  if (!trains()) {
    return {};
  }
  COHORT_ASSIGN_OR_RETURN(
      const std::string coordinator,
      coordination_->Wait(kCoordinatorKey, DeadlineAfter(options_.join_timeout)));
  {
    const std::lock_guard lock(failure_mutex_);
    coordinator_client_ = ps::CoordinatorClient::Make(
        coordinator, chief_.ToString(),
        {.task = config_.task, .incarnation = coordination_->incarnation()},
        options_.heartbeat_timeout);
    if (!failure_.ok()) {
      coordinator_client_->Abort(failure_);
    }
  }
  return Explain(coordinator_client_->Attach());
}

Status Implementation::Publish() {
  if (server_ != nullptr) {
    const std::string address =
        ps::WithPort(config_.cluster.Address(config_.task), server_->port());
    const Status status = coordination_->Insert(ServerKey(config_.task.index), address);
    if (status.code() == StatusCode::kAlreadyExists) {
      return FailedPrecondition(config_.task.ToString() +
                                " was part of this job before, and its variables are gone "
                                "[restart the job from its last checkpoint]");
    }
    return status;
  }
  if (is_chief()) {
    return coordination_->Insert(
        kCoordinatorKey,
        ps::WithPort(config_.cluster.Address(config_.task), coordinator_server_->port()));
  }
  return {};
}

Status Implementation::FindServers() {
  for (int s = 0; s < num_servers_; ++s) {
    COHORT_ASSIGN_OR_RETURN(
        const std::string address,
        coordination_->Wait(ServerKey(s), DeadlineAfter(options_.join_timeout)));
    server_addresses_.push_back(address);
  }
  return {};
}

void Implementation::Fail(const Status& why) {
  const std::lock_guard lock(failure_mutex_);
  if (failure_.ok()) {
    failure_ = why;
  }
  if (client_ != nullptr) {
    client_->Abort(why);
  }
  if (coordinator_client_ != nullptr) {
    coordinator_client_->Abort(why);
  }
  if (coordinator_ != nullptr) {
    coordinator_->Fail(why);
  }
}

Status Implementation::Explain(const Status& status) const {
  const bool of_a_peer = status.code() == StatusCode::kUnavailable ||
                         status.code() == StatusCode::kAborted ||
                         status.code() == StatusCode::kDeadlineExceeded;
  if (of_a_peer && coordination_ != nullptr) {
    if (const Status failure = coordination_->failure(); !failure.ok()) {
      return failure;
    }
  }
  return status;
}

Status Implementation::Shutdown() {
  if (left_ || coordination_ == nullptr) {
    return {};
  }
  left_ = true;
  COHORT_RETURN_IF_ERROR(coordination_->failure());
  if (coordinator_client_ != nullptr) {
    COHORT_RETURN_IF_ERROR(Explain(coordinator_client_->Done()));
  }
  if (may_leave()) {
    coordination_.reset();  // says goodbye; the others go on
    return {};
  }
  if (is_chief()) {
    if (trains()) {
      COHORT_RETURN_IF_ERROR(Coordinate());  // until the other workers are done too
    }
    if (client_ != nullptr) {
      COHORT_RETURN_IF_ERROR(Explain(client_->Drain()));
    }
  }
  return coordination_->Shutdown();
}

// ---- Serving ------------------------------------------------------------------------------------

Status Implementation::Serve() {
  began_ = true;
  if (config_.task.type == TaskType::kPs) {
    return ServeVariables();
  }
  if (trains()) {
    return {};
  }
  Require(parameters_ != nullptr, "Bind before Serve");
  OpenData();
  COHORT_RETURN_IF_ERROR(Coordinate());
  return Refresh(/*everything=*/true);
}

Status Implementation::ServeVariables() {
  while (!server_->WaitDrained(DeadlineAfter(kLook))) {
    COHORT_RETURN_IF_ERROR(coordination_->failure());
  }
  const ps::StoreStats stats = server_->store().stats();
  options_.log.Info(config_.task.ToString() + " served " + std::to_string(stats.pushes) +
                    " pushes (" + std::to_string(stats.duplicates) + " repeated, " +
                    std::to_string(stats.rejected) + " rejected), staleness mean " +
                    std::to_string(stats.mean_staleness) + ", at most " +
                    std::to_string(stats.max_staleness));
  return {};
}

Status Implementation::Coordinate() {
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(const bool over, coordinator_->WaitOver(kLook));
    if (over) {
      return {};
    }
    COHORT_RETURN_IF_ERROR(coordination_->failure());
  }
}

Result<std::unique_ptr<Coordinator>> Implementation::MakeCoordinator(
    const ScheduleOptions& options) {
  if (!is_chief() || trains() || options_.synchronous_parameter_server) {
    return FailedPrecondition(
        config_.task.ToString() +
        (options_.synchronous_parameter_server
             ? ": functions train apart from each other, and application is synchronous [apply "
               "asynchronously]"
             : " cannot call functions: a chief that does not train does [cohort launch -n 2 --ps "
               "1 --chief -- PROGRAM]"));
  }
  Require(client_ != nullptr, "Bind before Coordinator::Create");
  COHORT_ASSIGN_OR_RETURN(auto coordinator, ps::OpenFunctions(*coordinator_, options));
  OpenData();
  return coordinator;
}

Status Implementation::ServeFunctions(const Functions& functions) {
  if (!trains() || is_chief() || options_.synchronous_parameter_server) {
    return FailedPrecondition(
        config_.task.ToString() +
        " runs no functions: workers of an asynchronous job with a chief do [cohort launch -n 2 "
        "--ps 1 --chief -- PROGRAM]");
  }
  Require(client_ != nullptr, "Bind before ServeFunctions");
  return Explain(ps::RunFunctions(*coordinator_client_, functions));
}

// Only now: what the chief assigned to the servers before is what training starts from.
void Implementation::OpenData() {
  coordinator_->Open(static_cast<std::int64_t>(client_->version()));
}

// ---- Parameters ---------------------------------------------------------------------------------

Status Implementation::Bind(ParameterSet& parameters, std::unique_ptr<Optimizer> optimizer) {
  Require(parameters_ == nullptr, "Bind once");
  Require(parameters.built() && optimizer != nullptr, "built parameters and an optimizer");
  const ps::ModelSpec spec = ps::ModelSpec::Of(parameters, optimizer->config(),
                                               options_.synchronous_parameter_server, num_servers_);
  if (server_ != nullptr) {
    COHORT_RETURN_IF_ERROR(server_->store().Declare(spec, config_.task.ToString()));
  } else {
    auto client = ps::Client::Make(spec, server_addresses_,
                                   {.incarnation = coordination_->incarnation(),
                                    .task = config_.task.ToString(),
                                    .peer_timeout = options_.heartbeat_timeout});
    const std::lock_guard lock(failure_mutex_);
    client_ = std::move(client);
    if (!failure_.ok()) {
      client_->Abort(failure_);
    }
  }
  parameters_ = &parameters;
  optimizer_ = std::move(optimizer);
  if (client_ == nullptr) {
    return {};
  }
  COHORT_RETURN_IF_ERROR(Explain(client_->Declare()));
  if (is_chief()) {
    COHORT_RETURN_IF_ERROR(Explain(client_->Assign(parameters.all(), {}, 0)));
    COHORT_RETURN_IF_ERROR(coordination_->Insert(kInitialisedKey, "1"));
  } else {
    COHORT_RETURN_IF_ERROR(
        coordination_->Wait(kInitialisedKey, DeadlineAfter(options_.join_timeout)).status());
    COHORT_RETURN_IF_ERROR(Refresh(/*everything=*/true));
  }
  fresh_ = false;  // the chief may set them yet
  if (trains()) {
    sink_ = std::make_unique<ps::LocalSink>(parameters);
    std::size_t fixed = 0;
    ForFixed([&](std::span<float> value, std::span<float> /*gradient*/) { fixed += value.size(); });
    fixed_values_.resize(fixed);
  }
  return {};
}

Status Implementation::Broadcast(std::span<std::byte> bytes) {
  if (began_ || bytes.size() > kMaxBroadcastBytes) {
    return {};
  }
  const std::string key = "parameter_server/broadcast/" + std::to_string(broadcasts_++);
  if (is_chief()) {
    return coordination_->Insert(
        key, std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }
  COHORT_ASSIGN_OR_RETURN(const std::string value,
                          coordination_->Wait(key, DeadlineAfter(options_.join_timeout)));
  if (value.size() != bytes.size()) {
    return FailedPrecondition("Broadcast " + key + " of " + std::to_string(value.size()) +
                              " bytes, this process expects " + std::to_string(bytes.size()) +
                              " [run the same program everywhere]");
  }
  std::memcpy(bytes.data(), value.data(), value.size());
  return {};
}

Status Implementation::Refresh(bool everything) {
  const Status status = client_->Pull(parameters_->all(), everything);
  step_ = static_cast<std::int64_t>(client_->version());
  return Explain(status);
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
  const Status status = client_->PullState(parameters_->all(), slots());
  step_ = static_cast<std::int64_t>(client_->version());
  return Explain(status);
}

Status Implementation::PushState() {
  if (client_ == nullptr || !is_chief()) {
    return {};  // the servers take what the chief has
  }
  return Explain(client_->Assign(parameters_->all(), slots(), static_cast<std::uint64_t>(step_)));
}

Result<ParameterServerStats> Implementation::stats() {
  Require(client_ != nullptr, "stats after Bind, not on a server");
  COHORT_ASSIGN_OR_RETURN(const ps::StoreStats stats, client_->Stats());
  return ParameterServerStats{.pushes = stats.pushes,
                              .duplicates = stats.duplicates,
                              .rejected = stats.rejected,
                              .mean_staleness = stats.mean_staleness,
                              .max_staleness = stats.max_staleness};
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
  if (options.evaluation) {
    return evaluates() ? ps::MakeWholeDataset(dataset,
                                              [this] {
                                                Require(client_ != nullptr, "Bind first");
                                                return Refresh(/*everything=*/false);
                                              })
                       : ps::MakeEmptyDataset();
  }
  if (config_.task.type == TaskType::kPs) {
    return ps::MakeEmptyDataset();
  }
  const int number = datasets_++;
  const ps::DatasetInfo info = ps::InfoOf(dataset);
  if (is_chief()) {
    COHORT_RETURN_IF_ERROR(coordinator_->OpenDataset(config_.task.ToString(), number, info));
  }
  if (!trains()) {
    return ps::MakeEmptyDataset();
  }
  COHORT_RETURN_IF_ERROR(Explain(coordinator_client_->OpenDataset(number, info)));
  ps::Feed feed{.coordinator = coordinator_client_.get(),
                .begin =
                    [this] {
                      Require(client_ != nullptr, "Bind before the first epoch");
                      began_ = true;
                      if (is_chief()) {
                        OpenData();
                      }
                    },
                .end = [this] { return Refresh(/*everything=*/false); },
                .finished =
                    [this](std::int64_t id) {
                      ps::FinishedSplit finished = std::exchange(finished_, {});
                      finished.id = id;
                      return finished;
                    },
                .round = [this](const ps::RoundPart& part) { round_ = part; },
                .explain = [this](const Status& status) { return Explain(status); }};
  return options_.synchronous_parameter_server
             ? ps::MakeRoundDataset(dataset, number, std::move(feed))
             : ps::MakeSplitDataset(dataset, number, std::move(feed));
}

// ---- One step -----------------------------------------------------------------------------------

Result<ReplicaResult> Implementation::Run(const data::Batch& part, const StepFn& fn, bool train) {
  NoGradients none;
  ReplicaContext context{.replica = trains() ? rank() : 0,
                         .num_replicas = trains() ? static_cast<int>(workers_.size()) : 1,
                         .step = train ? step_ + 1 : step_,
                         .parameters = *parameters_,
                         .gradients = train ? static_cast<GradientSink&>(*sink_) : none,
                         .stream = *stream_,
                         .intra_op_threads = intra_op_threads_};
  if (train) {
    sink_->Begin(static_cast<double>(part.size), global_mean(), *stream_);
  }
  Result<ReplicaResult> result = ReplicaResult();
  std::exception_ptr exception;
  try {
    if (part.size > 0) {
      result = fn(context, part);
    }
    if (train && result.ok()) {
      sink_->End();
    }
  } catch (...) {
    exception = std::current_exception();
  }
  // The parameters must not change, nor the arena be sent, before the stream ran dry.
  const Status drained = stream_->Synchronize(DeadlineAfter(options_.collective_timeout));
  if (exception != nullptr) {
    RestoreFixedValues();
    std::rethrow_exception(exception);
  }
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

// fn(value, place in the gradients) for each parameter that is not trained by gradients.
template <typename Fn>
void Implementation::ForFixed(const Fn& fn) {
  for (int p = 0; p < parameters_->size(); ++p) {
    const ParameterSet::Parameter& parameter = (*parameters_)[p];
    if (!parameter.trainable) {
      const std::span<float> value = parameters_->value(p);
      fn(value, sink_->arena().subspan(static_cast<std::size_t>(parameter.offset), value.size()));
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
  Require(trains(), "Step where trains() holds");
  Require(sink_ != nullptr, "Bind before the first step");
  Require(batch.replicas.size() == 1, "a batch with one part per local replica");
  if (!fresh_) {
    COHORT_RETURN_IF_ERROR(Refresh(/*everything=*/true));
    fresh_ = true;
  }
  KeepFixedValues();
  Result<StepResult> result = options_.synchronous_parameter_server
                                  ? StepTogether(batch, fn)
                                  : StepAlone(batch.replicas[0], fn);
  if (!result.ok()) {
    RestoreFixedValues();
    return Explain(result.status());
  }
  return result;
}

Result<StepResult> Implementation::StepAlone(const data::Batch& part, const StepFn& fn) {
  COHORT_ASSIGN_OR_RETURN(const ReplicaResult mine, Run(part, fn, /*train=*/true));
  if (mine.weight == 0) {
    RestoreFixedValues();
    return ResultOf({});
  }
  PutFixedValues(/*difference=*/true);
  const double weight = PushWeight(mine.weight);
  double clip = 1;
  if (optimizer_->global_clip_norm() > 0) {
    const double scale = static_cast<float>(1.0 / weight);
    clip = ClipFactor(sink_->SquaredNorm() * scale * scale, optimizer_->global_clip_norm());
    clip = std::isfinite(clip) ? clip : 1;  // the server says whose gradient it is that is broken
  }
  COHORT_RETURN_IF_ERROR(client_->Push(
      {.arena = sink_->arena(), .owner = sink_->owner(), .weight = weight, .clip = clip},
      parameters_->all()));
  step_ = static_cast<std::int64_t>(client_->version());
  const ps::RoundSums sums{mine.loss_sum, mine.weight, mine.metric_sums};
  ++finished_.steps;
  finished_.sums.Add(sums);
  return ResultOf(sums);
}

Result<StepResult> Implementation::StepTogether(const DistributedBatch& batch, const StepFn& fn) {
  Require(round_.has_value() && round_->epoch.epoch == batch.epoch && round_->batch == batch.index,
          "under synchronous application a step takes the batch that Next gave last");
  const ps::RoundPart part = *round_;
  COHORT_ASSIGN_OR_RETURN(const ReplicaResult mine, Run(batch.replicas[0], fn, /*train=*/true));
  PutFixedValues(/*difference=*/false);
  ps::Gradient gradient{
      .arena = sink_->arena(), .owner = sink_->owner(), .weight = PushWeight(mine.weight)};
  gradient.round.emplace();
  gradient.round->set_round(part.round);
  gradient.round->set_attempt(static_cast<std::uint32_t>(part.attempt));
  gradient.round->set_part(static_cast<std::uint32_t>(part.part));
  gradient.round->set_parts(static_cast<std::uint32_t>(part.parts));
  COHORT_RETURN_IF_ERROR(client_->Push(gradient, {}));
  COHORT_ASSIGN_OR_RETURN(
      const std::optional<ps::RoundSums> total,
      coordinator_client_->FinishRound(part, {mine.loss_sum, mine.weight, mine.metric_sums}));
  round_.reset();
  if (!total.has_value()) {
    // Values stay as they are: the batch comes again, cut among the workers that are left, and its
    // gradient is to be taken where this one was.
    RestoreFixedValues();
    return ResultOf({});
  }
  if (optimizer_->global_clip_norm() > 0) {
    COHORT_RETURN_IF_ERROR(client_->Settle(part.round, optimizer_->global_clip_norm()));
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
  COHORT_ASSIGN_OR_RETURN(const ReplicaResult mine, Run(batch.replicas[0], fn, /*train=*/false));
  return ResultOf({mine.loss_sum, mine.weight, mine.metric_sums});
}

}  // namespace

Result<std::unique_ptr<ParameterServerStrategy>> ParameterServerStrategy::Make(
    const ClusterConfig& config, const StrategyOptions& options) {
  COHORT_RETURN_IF_ERROR(CheckConfig(config, options));
  auto strategy = std::make_unique<Implementation>(config, options);
  COHORT_RETURN_IF_ERROR(strategy->Join());
  return strategy;
}

}  // namespace cohort
