#include "multi_worker/job.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <cohort/comm/mpi.h>
#include <cohort/rpc/coordination.h>

#include "grpc_util.h"
#include "multi_worker/crew.h"
#include "multi_worker/server_rows.h"
#include "multi_worker/server_watch.h"
#include "parameter_server/job.h"
#include "parameter_server/rows/row_client.h"
#include "parameter_server/variables/client.h"
#include "synchronous/agreement.h"

namespace cohort {
namespace {

// Of what a generation of the communicator is made, the first time and again.
using Connector = std::function<Result<std::unique_ptr<Communicator>>(const Crew&, KeyValueStore&,
                                                                      std::uint64_t generation)>;

// The keys of the service, for those who meet: none is waited for when a process is known to be
// lost in this term. Outlived by both.
class TermStore final : public KeyValueStore {
 public:
  TermStore(KeyValueStore& store, const ServerWatch& watch) : store_(store), watch_(watch) {}

  Status Insert(const std::string& key, const std::string& value) override {
    return store_.Insert(key, value);
  }
  Result<std::string> Get(const std::string& key) override { return store_.Get(key); }
  Result<std::string> Wait(const std::string& key, Deadline deadline) override {
    constexpr std::chrono::milliseconds kSlice{200};
    for (;;) {
      Result<std::string> value = store_.Wait(key, std::min(deadline, DeadlineAfter(kSlice)));
      if (value.ok() || value.status().code() != StatusCode::kDeadlineExceeded ||
          std::chrono::steady_clock::now() >= deadline) {
        return value;
      }
      COHORT_RETURN_IF_ERROR(watch_.loss());
    }
  }

 private:
  KeyValueStore& store_;
  const ServerWatch& watch_;
};

// A communicator and the coordination client that watches over it; and over the servers, where the
// job has some.
class JobMembership final : public Membership {
 public:
  // `communicator`: nullptr until Meet, which makes it by `connect`.
  JobMembership(std::unique_ptr<CoordinationServer> server,
                std::unique_ptr<Communicator> communicator,
                std::unique_ptr<CoordinationClient> client, const ClusterConfig& config,
                const StrategyOptions& options, Connector connect = {})
      : config_(config),
        heartbeat_timeout_(options.heartbeat_timeout),
        collective_timeout_(options.communication.timeout),
        communication_(options.communication),
        connect_(std::move(connect)),
        lookahead_(options.lookahead),
        server_(std::move(server)),
        communicator_(std::move(communicator)),
        client_(std::move(client)) {
    if (num_row_servers() > 0) {
      watch_ = std::make_unique<ServerWatch>(
          config_, options,
          ServerWatch::Parts{.server = server_.get(),
                             .client = client_.get(),
                             .end_calls = [this](const Status& why) { Fail(why); }});
    }
    client_->OnFailure([this](const Status& why) { Fail(why); });
    client_->SetProgress([this]() -> TaskProgress {
      const std::lock_guard lock(failure_mutex_);
      if (communicator_ == nullptr) {
        return {};
      }
      const OperationProgress now = communicator_->progress();
      return {now.generation, now.sequence, now.operation,
              std::chrono::duration_cast<std::chrono::milliseconds>(
                  std::chrono::steady_clock::now() - now.since),
              now.under_way};
    });
  }

  ~JobMembership() override {
    if (watch_ != nullptr) {
      watch_->Stop();
    }
  }

  // Once, before all else, where it was made without a communicator.
  Status Meet() {
    if (watch_ != nullptr) {
      COHORT_RETURN_IF_ERROR(watch_->Meet());
    }
    COHORT_ASSIGN_OR_RETURN(std::shared_ptr<Communicator> communicator, Connect());
    {
      const std::lock_guard lock(failure_mutex_);
      communicator_ = std::move(communicator);
    }
    FailIfOver();
    return {};
  }

  Communicator* communicator() override { return communicator_.get(); }
  KeyValueStore* store() override { return client_.get(); }

  Status Explain(const Status& status) override {
    if (IsLoss(status)) {
      return watch_->loss();
    }
    // Also tells those that have no connection to the one that failed. If the job failed before,
    // this learns why.
    Report(status);
    const Status failure = client_->failure();
    if (failure.ok()) {
      return status;
    }
    // Of a task that is lost or late the service knows more: its last heartbeat, and who is at
    // which operation.
    const bool same = failure.message().find(status.message()) != std::string::npos;
    const bool adds =
        status.code() == StatusCode::kUnavailable || status.code() == StatusCode::kDeadlineExceeded;
    return same && !adds ? status : failure;
  }

  void GiveUp(const Status& error) override {
    Fail(error);
    if (!IsLoss(error)) {
      Report(error);
    }
  }
  void GiveUpOwn(const Status& error) override {
    Fail(error);
    if (watch_ == nullptr || watch_->loss().ok() || !IsLoss(error)) {
      Report(error);
    }
  }
  void EndJob(const Status& error) override {
    Fail(error);
    Report(error);
  }

  // Servers of rows end when the chief says so, and all have done with them.
  Status Leave() override {
    if (watch_ != nullptr) {
      watch_->Leave();
    }
    if (row_servers_ != nullptr && config_.is_chief()) {
      COHORT_RETURN_IF_ERROR(row_servers_->Drain());
    }
    return client_->Shutdown();
  }

  int num_row_servers() const override { return config_.cluster.Count(TaskType::kPs); }

  // Each term has an epoch of the servers, which have no rows at its beginning, and refuse what is
  // of another one.
  Result<std::unique_ptr<StepRows>> ConnectRows(const ps::ModelSpec& model, int threads) override {
    COHORT_RETURN_IF_ERROR(ps::CheckLookahead(lookahead_));
    const bool leads = config_.is_chief();
    COHORT_ASSIGN_OR_RETURN(const std::vector<std::string> addresses,
                            leads ? watch_->Addresses() : watch_->AwaitReady());
    COHORT_ASSIGN_OR_RETURN(const ps::FrameTransport transport, ps::TransportOf(communication_));
    const ps::ClientOptions options{.client = client_->incarnation(),
                                    .task = config_.task.ToString(),
                                    .epoch = watch_->term() + 1,
                                    .peer_timeout = heartbeat_timeout_,
                                    .read_timeout = collective_timeout_,
                                    .transport = transport};
    {
      const std::lock_guard lock(failure_mutex_);
      row_servers_ = ps::Client::Make(model, addresses, options);
      rows_ = ps::RowClient::Make(model, addresses, options);
      saved_rows_ = ps::RowClient::Make(model, addresses, options);
    }
    FailIfOver();
    COHORT_RETURN_IF_ERROR(row_servers_->Declare());
    if (leads) {
      COHORT_RETURN_IF_ERROR(row_servers_->Begin({}).status());
      COHORT_RETURN_IF_ERROR(watch_->SayReady(addresses));
    }
    return std::make_unique<ServerRows>(
        *rows_, ServerRows::Saver{.servers = *row_servers_, .rows = *saved_rows_}, model.tables,
        threads, communicator_->rank(), communicator_->size(), /*looks_ahead=*/lookahead_ > 0);
  }

  bool joined_in_training() const override {
    return watch_ != nullptr && watch_->joined_in_training();
  }
  Result<bool> BeginTraining() override { return watch_ != nullptr && watch_->BeginTraining(); }
  Status EndTraining() override {
    if (watch_ == nullptr) {
      return {};
    }
    // The chief must know that the others have done their work.
    CollectiveOptions options;
    options.name = "the end of training";
    Status ended = Await(communicator_->Barrier(options));
    if (ended.ok()) {
      ended = watch_->EndTraining();
    }
    return ended.ok() ? ended : Explain(ended);
  }
  Status CheckLoss(const Status& error) override {
    return watch_ == nullptr ? error : watch_->CheckLoss(error);
  }

  Status Renew(const std::function<void()>& let_go) override {
    COHORT_RETURN_IF_ERROR(watch_->AwaitNextTerm());
    COHORT_ASSIGN_OR_RETURN(std::shared_ptr<Communicator> communicator, Connect());
    let_go();
    std::shared_ptr<ps::Client> row_servers;
    std::shared_ptr<ps::RowClient> rows;
    std::shared_ptr<ps::RowClient> saved_rows;
    {
      const std::lock_guard lock(failure_mutex_);
      communicator_.swap(communicator);
      row_servers_.swap(row_servers);
      rows_.swap(rows);
      saved_rows_.swap(saved_rows);
    }
    FailIfOver();
    return {};
  }

 private:
  // In this term, or in the next one where one more is lost. After another error the job is over.
  Result<std::shared_ptr<Communicator>> Connect() {
    for (;;) {
      COHORT_ASSIGN_OR_RETURN(
          const Crew crew,
          Crew::Of(watch_ != nullptr ? watch_->crew() : config_.cluster.TrainingTasks(),
                   config_.task));
      std::optional<TermStore> store;
      if (watch_ != nullptr) {
        store.emplace(*client_, *watch_);
      }
      auto made = connect_(crew, store.has_value() ? static_cast<KeyValueStore&>(*store) : *client_,
                           watch_ != nullptr ? watch_->term() + 1 : 1);
      if (made.ok()) {
        return std::shared_ptr<Communicator>(std::move(made).value());
      }
      if (!FollowsFromLoss(made.status())) {
        Report(made.status());
        return made.status();
      }
      COHORT_RETURN_IF_ERROR(watch_->AwaitNextTerm());
    }
  }
  // Is that they did not meet, however that ended, the consequence of a loss?
  bool FollowsFromLoss(const Status& error) {
    return watch_ != nullptr && watch_->CheckLoss(Unavailable(error.message())).ok();
  }

  // What calls go through at this moment; null where there are no servers, or nothing yet.
  struct Ways {
    std::shared_ptr<Communicator> communicator;
    std::shared_ptr<ps::RowClient> rows;
    std::shared_ptr<ps::RowClient> saved_rows;
    std::shared_ptr<ps::Client> row_servers;
  };
  Ways Present() {
    const std::lock_guard lock(failure_mutex_);
    return {communicator_, rows_, saved_rows_, row_servers_};
  }

  // What is under way, and what comes, ends with `why`. Not under the lock, which the heart takes:
  // a communicator that is aborted writes its flight record. No later term is hit: it begins when
  // this has returned to the watch, and none does after a failure of the job.
  void Fail(const Status& why) {
    const Ways present = Present();
    if (present.communicator != nullptr) {
      present.communicator->Abort(why);
    }
    for (const auto& rows : {present.rows, present.saved_rows}) {
      if (rows != nullptr) {
        rows->Abort(why);
      }
    }
    if (present.row_servers != nullptr) {
      present.row_servers->Abort(why);
    }
  }

  // For what was just made: who had to end it may have come before.
  void FailIfOver() {
    if (const Status failure = client_->failure(); !failure.ok()) {
      Fail(failure);
    }
    if (watch_ == nullptr) {
      return;
    }
    if (const Status loss = watch_->loss(); !loss.ok()) {
      Fail(loss);
    }
  }

  // Is `error` the loss of a server that the job survives? The others are not kept waiting while
  // that is found out.
  bool IsLoss(const Status& error) {
    if (watch_ == nullptr || reported_ || error.ok() || !MayBeLoss(error)) {
      return false;
    }
    Fail(error);
    return watch_->CheckLoss(error).ok();
  }
  static bool MayBeLoss(const Status& error) {
    return error.code() == StatusCode::kUnavailable || error.code() == StatusCode::kAborted;
  }

  // Once: where the service is gone this takes until the heart has noticed, and the first error is
  // the one that counts.
  void Report(const Status& error) {
    if (!std::exchange(reported_, true)) {
      (void)client_->ReportError(error);
    }
  }

  const ClusterConfig config_;
  const std::chrono::milliseconds heartbeat_timeout_;
  const std::chrono::milliseconds collective_timeout_;
  const CommunicationOptions communication_;
  const Connector connect_;
  const int lookahead_;
  std::mutex failure_mutex_;  // guards the pointers against Fail and the heart
  std::shared_ptr<ps::Client> row_servers_;
  std::shared_ptr<ps::RowClient> rows_;
  std::shared_ptr<ps::RowClient> saved_rows_;  // for those who save them
  std::unique_ptr<ServerWatch> watch_;         // where there are servers
  // Destroyed from the last to the first: the client's heart stops before what it would abort goes,
  // and the service answers until this process has said goodbye.
  const std::unique_ptr<CoordinationServer> server_;
  std::shared_ptr<Communicator> communicator_;
  const std::unique_ptr<CoordinationClient> client_;
  bool reported_ = false;
};

std::string HostOf(const std::string& address) { return address.substr(0, address.rfind(':')); }
std::string PortOf(const std::string& address) { return address.substr(address.rfind(':') + 1); }

int RankOf(const ClusterConfig& config) {
  const std::vector<TaskId> tasks = config.cluster.TrainingTasks();
  return static_cast<int>(std::find(tasks.begin(), tasks.end(), config.task) - tasks.begin());
}

int SizeOf(const ClusterConfig& config) {
  return static_cast<int>(config.cluster.TrainingTasks().size());
}

CoordinationOptions CoordinationOf(const StrategyOptions& options) {
  CoordinationOptions result;
  result.join_timeout = options.join_timeout;
  result.roll_call_interval = std::min(result.roll_call_interval, options.join_timeout / 3);
  result.heartbeat_timeout = options.heartbeat_timeout;
  result.heartbeat_interval = std::min(result.heartbeat_interval, options.heartbeat_timeout / 4);
  result.log = options.log;
  return result;
}

Status CheckWorkerLoss(const ClusterConfig& config, const StrategyOptions& options) {
  if (options.min_workers < 1 || options.min_workers > SizeOf(config)) {
    return InvalidArgument("min_workers is " + std::to_string(options.min_workers) + " of " +
                           std::to_string(SizeOf(config)) + " worker(s) [at least 1, at most all]");
  }
  if (options.worker_patience.count() < 0) {
    return InvalidArgument("worker_patience is " + std::to_string(options.worker_patience.count()) +
                           " ms [0 waits for nobody]");
  }
  return {};
}

Result<std::unique_ptr<Membership>> JoinByAddress(const ClusterConfig& config,
                                                  const StrategyOptions& options) {
  const TaskId chief = config.cluster.Chief();
  const std::string service =
      config.rendezvous.empty() ? config.cluster.Address(chief) : config.rendezvous;
  if (PortOf(service) == "0") {
    return FailedPrecondition("the address of " + chief.ToString() + ", " + service +
                              ", has no port by which the others could find it [give it one in " +
                              config.source + "]");
  }
  CoordinationOptions coordination = CoordinationOf(options);
  if (ServerWatch::GoesOn(config, options)) {
    COHORT_RETURN_IF_ERROR(CheckWorkerLoss(config, options));
    coordination.may_leave = [chief](const TaskId& task) { return task != chief; };
  }
  std::unique_ptr<CoordinationServer> server;
  const auto watched = std::make_shared<std::atomic<bool>>(false);
  if (config.is_chief()) {
    COHORT_ASSIGN_OR_RETURN(
        server, CoordinationServer::Start(ListenAddress(service), config.cluster, coordination));
    // Until there is a watch, which does so.
    server->OnTaskLost([watched, service = server.get()](const TaskId& task, const Status& how) {
      if (!*watched && task.type != TaskType::kPs) {
        (void)service->Fail(ServerWatch::EndOf(how));
      }
    });
  }
  COHORT_ASSIGN_OR_RETURN(auto client,
                          CoordinationClient::Join(service, config.cluster, config.task,
                                                   /*wait_for_all=*/true, coordination));
  if (config.cluster.Count(TaskType::kPs) > 0) {
    COHORT_RETURN_IF_ERROR(ps::AgreeOnKind(*client, config, "multi_worker_mirrored",
                                           DeadlineAfter(options.join_timeout)));
  }
  Connector connect = [options, host = HostOf(service)](const Crew& crew, KeyValueStore& store,
                                                        std::uint64_t generation) {
    return ConnectCrew(crew, options, store, host, generation);
  };
  auto membership =
      std::make_unique<JobMembership>(std::move(server), /*communicator=*/nullptr,
                                      std::move(client), config, options, std::move(connect));
  *watched = true;
  COHORT_RETURN_IF_ERROR(membership->Meet());
  return std::unique_ptr<Membership>(std::move(membership));
}

// Starts the service of a job whose addresses nobody knows beforehand; sets `address` to where the
// others reach it.
Result<std::unique_ptr<CoordinationServer>> StartAnywhere(const ClusterConfig& config,
                                                          const CoordinationOptions& options,
                                                          std::string& address) {
  const bool one_host = config.local_size >= SizeOf(config);
  std::array<char, 256> host{"127.0.0.1"};
  if (!one_host && ::gethostname(host.data(), host.size() - 1) != 0) {
    return ErrnoStatus(errno, "the name of this host");
  }
  COHORT_ASSIGN_OR_RETURN(
      auto server,
      CoordinationServer::Start(one_host ? "127.0.0.1:0" : "0.0.0.0:0", config.cluster, options));
  address = std::string(host.data()) + ":" + std::to_string(server->port());
  return server;
}

// The chief's text, on every rank.
Result<std::string> FromChief(Communicator& communicator, const std::string& text) {
  std::array<char, 320> bytes{};
  std::copy_n(text.begin(), std::min(text.size(), bytes.size() - 1), bytes.begin());
  CollectiveOptions options;
  options.name = "address of the coordination service";
  COHORT_RETURN_IF_ERROR(Await(communicator.Broadcast(
      Buffer(bytes.data(), static_cast<std::int64_t>(bytes.size()), DType::kUInt8), 0, options)));
  return std::string(bytes.data());
}

Result<std::unique_ptr<Membership>> JoinByMpi(const ClusterConfig& config,
                                              const StrategyOptions& options) {
  COHORT_ASSIGN_OR_RETURN(const Crew crew, Crew::Of(config.cluster.TrainingTasks(), config.task));
  CommunicatorOptions how = CommunicatorOf(crew, options, /*generation=*/1);
  // With MPI's own collectives, sums of virtual shards go by another algorithm.
  how.deterministic &= options.deterministic || options.mpi_implementation != "mpi";
  COHORT_ASSIGN_OR_RETURN(auto communicator,
                          MakeMpiCommunicator({.implementation = options.mpi_implementation,
                                               .connect_timeout = options.join_timeout},
                                              how));
  if (communicator->size() != SizeOf(config) || communicator->rank() != RankOf(config)) {
    return FailedPrecondition(
        "MPI has started rank " + std::to_string(communicator->rank()) + " of " +
        std::to_string(communicator->size()) + ", but " + config.source + " says that " +
        config.task.ToString() + " is rank " + std::to_string(RankOf(config)) + " of " +
        std::to_string(SizeOf(config)) + " [start one process per training task]");
  }
  const CoordinationOptions coordination = CoordinationOf(options);
  std::unique_ptr<CoordinationServer> server;
  std::string address;
  if (config.is_chief()) {
    auto started = StartAnywhere(config, coordination, address);
    if (!started.ok()) {
      communicator->Abort(started.status());
      return started.status();
    }
    server = std::move(started).value();
  }
  COHORT_ASSIGN_OR_RETURN(address, FromChief(*communicator, address));
  auto client = CoordinationClient::Join(address, config.cluster, config.task,
                                         /*wait_for_all=*/true, coordination);
  if (!client.ok()) {
    communicator->Abort(client.status());
    return client.status();
  }
  return std::make_unique<JobMembership>(std::move(server), std::move(communicator),
                                         std::move(client).value(), config, options);
}

}  // namespace

Result<std::unique_ptr<Membership>> JoinJob(const ClusterConfig& config,
                                            const StrategyOptions& options) {
  const int servers = config.cluster.Count(TaskType::kPs);
  if (SizeOf(config) == 1 && servers == 0) {
    return MakeMembership(nullptr);
  }
  if (config.mpi && servers > 0) {
    return FailedPrecondition("a job under mpirun has no ps tasks, " + config.source + " names " +
                              std::to_string(servers) +
                              " [start it by addresses: TF_CONFIG, or "
                              "cohort launch --ps]");
  }
  if (config.mpi && !options.communication.bind_host.empty()) {
    return InvalidArgument("communication.bind_host '" + options.communication.bind_host +
                           "' under mpirun, whose processes reach each other by MPI [leave it out, "
                           "or start the job by addresses]");
  }
  return config.mpi ? JoinByMpi(config, options) : JoinByAddress(config, options);
}

}  // namespace cohort
