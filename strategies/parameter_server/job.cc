#include "parameter_server/job.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <thread>
#include <utility>

#include "parameter_server/wire.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;

// How often a process that serves looks whether the job is healthy.
constexpr milliseconds kLook{200};
constexpr char kCoordinatorKey[] = "parameter_server/coordinator";
constexpr char kInitialisedKey[] = "parameter_server/initialised";

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
  const Consistency& consistency = options.consistency;
  const int workers = cluster.Count(TaskType::kWorker);
  if (consistency.staleness < 0 || consistency.backup_workers < 0 ||
      consistency.backup_workers >= workers) {
    return InvalidArgument("consistency " + consistency.ToString() + " with " +
                           std::to_string(workers) +
                           " workers [fewer backup workers than workers, and no negative number]");
  }
  if (options.num_devices != 1) {
    return InvalidArgument("parameter_server trains one replica per worker, num_devices is " +
                           std::to_string(options.num_devices) + " [start more workers instead]");
  }
  return {};
}

}  // namespace

std::string ServerKey(int server) { return "parameter_server/address/" + std::to_string(server); }

// Tells the servers of workers that are gone, on a thread of its own: who reports them must not
// wait for servers, and who trains is not there to do it.
class Retirements {
 public:
  explicit Retirements(Client& client) : client_(client) {
    thread_ = std::thread([this] { Run(); });
  }
  ~Retirements() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  void Add(std::uint64_t incarnation) {
    {
      const std::lock_guard lock(mutex_);
      waiting_.push_back(incarnation);
    }
    changed_.notify_all();
  }
  bool idle() const {
    const std::lock_guard lock(mutex_);
    return waiting_.empty() && !telling_;
  }

 private:
  void Run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stopped_ || !waiting_.empty(); });
      if (stopped_) {
        return;
      }
      const std::uint64_t incarnation = waiting_.front();
      waiting_.pop_front();
      telling_ = true;
      lock.unlock();
      // A server that cannot be told is lost, and ends the job.
      (void)client_.Retire(incarnation);
      lock.lock();
      telling_ = false;
    }
  }

  Client& client_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::uint64_t> waiting_;
  bool telling_ = false;
  bool stopped_ = false;
  std::thread thread_;
};

// What may still report a lost worker goes before what is told of it.
Job::~Job() {
  coordination_.reset();
  coordinator_server_.reset();
  coordination_server_.reset();
  StopRetirements();
}

Job::Job(ClusterConfig config, const StrategyOptions& options)
    : config_(std::move(config)),
      join_timeout_(options.join_timeout),
      heartbeat_timeout_(options.heartbeat_timeout),
      log_(options.log),
      backup_workers_(options.consistency.backup_workers),
      read_timeout_(options.collective_timeout),
      chief_(config_.cluster.Chief()),
      workers_(config_.cluster.TrainingTasks()),
      num_servers_(config_.cluster.Count(TaskType::kPs)) {}

int Job::rank() const {
  return static_cast<int>(std::find(workers_.begin(), workers_.end(), config_.task) -
                          workers_.begin());
}

Result<std::unique_ptr<Job>> Job::Join(const ClusterConfig& config,
                                       const StrategyOptions& options) {
  COHORT_RETURN_IF_ERROR(CheckConfig(config, options));
  std::unique_ptr<Job> job(new Job(config, options));
  COHORT_RETURN_IF_ERROR(job->StartServices());
  COHORT_RETURN_IF_ERROR(job->JoinCoordination());
  COHORT_RETURN_IF_ERROR(job->Publish());
  if (!job->is_server()) {
    COHORT_RETURN_IF_ERROR(job->FindServices());
  }
  return job;
}

Status Job::StartServices() {
  if (is_server()) {
    COHORT_ASSIGN_OR_RETURN(server_,
                            Server::Start(ListenAddress(config_.cluster.Address(config_.task)),
                                          config_.task.index, log_));
  }
  if (is_chief()) {
    coordinator_ = std::make_unique<Coordinator>(
        CoordinatorOptions{.workers = workers_,
                           .rejoin_timeout = join_timeout_,
                           .backup_workers = backup_workers_,
                           .on_gone = [this](std::uint64_t incarnation) { Gone(incarnation); },
                           .log = log_});
    COHORT_ASSIGN_OR_RETURN(
        coordinator_server_,
        CoordinatorServer::Start(ListenAddress(WithPort(config_.cluster.Address(config_.task), 0)),
                                 *coordinator_));
  }
  return {};
}

Status Job::JoinCoordination() {
  CoordinationOptions options;
  options.join_timeout = join_timeout_;
  options.heartbeat_timeout = heartbeat_timeout_;
  options.heartbeat_interval = std::min(options.heartbeat_interval, heartbeat_timeout_ / 5);
  options.may_leave = [chief = chief_](const TaskId& task) {
    return task.type == TaskType::kWorker && task != chief;
  };
  options.log = log_;
  const std::string address =
      config_.rendezvous.empty() ? config_.cluster.Address(chief_) : config_.rendezvous;
  if (is_chief()) {
    COHORT_ASSIGN_OR_RETURN(
        coordination_server_,
        CoordinationServer::Start(ListenAddress(address), config_.cluster, options));
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
  return {};
}

Status Job::Publish() {
  if (server_ != nullptr) {
    const std::string address = WithPort(config_.cluster.Address(config_.task), server_->port());
    const Status status = coordination_->Insert(ServerKey(config_.task.index), address);
    if (status.code() == StatusCode::kAlreadyExists) {
      return FailedPrecondition(config_.task.ToString() +
                                " was part of this job before, and its variables are gone "
                                "[restart the job from its last checkpoint]");
    }
    return status;
  }
  if (is_chief()) {
    return coordination_->Insert(kCoordinatorKey, WithPort(config_.cluster.Address(config_.task),
                                                           coordinator_server_->port()));
  }
  return {};
}

Status Job::FindServices() {
  for (int s = 0; s < num_servers_; ++s) {
    COHORT_ASSIGN_OR_RETURN(const std::string address,
                            coordination_->Wait(ServerKey(s), DeadlineAfter(join_timeout_)));
    server_addresses_.push_back(address);
  }
  if (!trains()) {
    return {};
  }
  COHORT_ASSIGN_OR_RETURN(const std::string coordinator,
                          coordination_->Wait(kCoordinatorKey, DeadlineAfter(join_timeout_)));
  {
    const std::lock_guard lock(failure_mutex_);
    coordinator_client_ = CoordinatorClient::Make(
        coordinator, chief_.ToString(),
        {.task = config_.task, .incarnation = coordination_->incarnation()}, heartbeat_timeout_);
    if (!failure_.ok()) {
      coordinator_client_->Abort(failure_);
    }
  }
  return Explain(coordinator_client_->Attach());
}

void Job::Gone(std::uint64_t incarnation) {
  const std::lock_guard lock(failure_mutex_);
  if (retirements_ != nullptr) {
    retirements_->Add(incarnation);
  }
}

void Job::Fail(const Status& why) {
  const std::lock_guard lock(failure_mutex_);
  if (failure_.ok()) {
    failure_ = why;
  }
  if (client_ != nullptr) {
    client_->Abort(why);
  }
  if (row_client_ != nullptr) {
    row_client_->Abort(why);
  }
  if (coordinator_client_ != nullptr) {
    coordinator_client_->Abort(why);
  }
  if (coordinator_ != nullptr) {
    coordinator_->Fail(why);
  }
}

Status Job::Explain(const Status& status) const {
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

Status Job::Leave() {
  if (left_ || coordination_ == nullptr) {
    return {};
  }
  left_ = true;
  COHORT_RETURN_IF_ERROR(coordination_->failure());
  if (coordinator_client_ != nullptr) {
    COHORT_RETURN_IF_ERROR(Explain(coordinator_client_->Done()));
  }
  if (trains() && !is_chief()) {
    coordination_.reset();  // says goodbye; the others go on
    return {};
  }
  if (is_chief()) {
    if (trains()) {
      COHORT_RETURN_IF_ERROR(Coordinate());  // until the other workers are done too
    }
    StopRetirements();
    if (client_ != nullptr) {
      COHORT_RETURN_IF_ERROR(Explain(client_->Drain()));
    }
  }
  return coordination_->Shutdown();
}

void Job::StopRetirements() {
  std::unique_ptr<Retirements> stopped;
  const std::lock_guard lock(failure_mutex_);
  stopped = std::move(retirements_);
}

Client& Job::Connect(const ModelSpec& spec) {
  const ClientOptions options{.incarnation = coordination_->incarnation(),
                              .task = config_.task.ToString(),
                              .peer_timeout = heartbeat_timeout_,
                              .read_timeout = read_timeout_};
  auto client = Client::Make(spec, server_addresses_, options);
  auto row_client =
      spec.tables.empty() ? nullptr : RowClient::Make(spec, server_addresses_, options);
  const std::lock_guard lock(failure_mutex_);
  client_ = std::move(client);
  row_client_ = std::move(row_client);
  if (!failure_.ok()) {
    client_->Abort(failure_);
  }
  if (!failure_.ok() && row_client_ != nullptr) {
    row_client_->Abort(failure_);
  }
  if (is_chief()) {
    retirements_ = std::make_unique<Retirements>(*client_);
  }
  return *client_;
}

Status Job::Initialised() {
  return is_chief() ? coordination_->Insert(kInitialisedKey, "1")
                    : coordination_->Wait(kInitialisedKey, DeadlineAfter(join_timeout_)).status();
}

void Job::ReportError(const Status& error) {
  if (coordination_ != nullptr && !error.ok()) {
    // If nobody can be told, nobody is there.
    (void)coordination_->ReportError(error);
  }
}

Status Job::ServeVariables() {
  while (!server_->WaitDrained(DeadlineAfter(kLook))) {
    COHORT_RETURN_IF_ERROR(coordination_->failure());
  }
  const StoreStats stats = server_->store().stats();
  log_.Info(config_.task.ToString() + " served " + std::to_string(stats.pushes) + " pushes (" +
            std::to_string(stats.duplicates) + " repeated, " + std::to_string(stats.rejected) +
            " rejected), staleness mean " + std::to_string(stats.mean_staleness) + ", at most " +
            std::to_string(stats.max_staleness) + "; " + std::to_string(stats.late) +
            " parts too late, " + std::to_string(stats.parked) + " reads parked");
  if (const RowStoreStats rows = server_->rows().stats(); rows.pulls + rows.pushes > 0) {
    log_.Info(config_.task.ToString() + " holds " + std::to_string(rows.rows) + " rows in " +
              std::to_string(rows.row_bytes >> 20) + " MiB; " + std::to_string(rows.pulls) +
              " pulls and " + std::to_string(rows.pushes) + " pushes of rows (" +
              std::to_string(rows.duplicates) + " repeated, " + std::to_string(rows.rejected) +
              " rejected)");
  }
  return {};
}

// All servers know of all workers that were given up.
bool Job::RetirementsTold() const {
  const std::lock_guard lock(failure_mutex_);
  return retirements_ == nullptr || retirements_->idle();
}

Status Job::BetweenUpdates(const std::function<Status(const Coordinator::Cut& cut)>& fn) {
  // A process that trains as well must not wait for work that may be left to itself: what a lost
  // worker held, or a part of the round. The next step is as good a place to save.
  const bool trains = config_.task.type != TaskType::kChief;
  const Deadline patience = DeadlineAfter(2 * heartbeat_timeout_);
  const auto left_to_itself = [&] {
    return trains && (coordinator_->WorkIsBack() ||
                      (backup_workers_ > 0 && std::chrono::steady_clock::now() >= patience));
  };
  if (left_to_itself()) {
    return {};
  }
  for (;;) {
    Result<std::optional<Coordinator::Cut>> cut = coordinator_->BeginCut(kLook);
    Status status = cut.status();
    bool again = false;
    if (status.ok() && cut->has_value() && RetirementsTold()) {
      status = fn(**cut);
    } else if (status.ok()) {
      status = coordination_->failure();
      again = status.ok() && !left_to_itself();
      if (again && cut->has_value()) {
        std::this_thread::sleep_for(milliseconds(5));  // servers are being told
      }
    }
    if (!again) {
      coordinator_->EndCut();
      return status;
    }
  }
}

Status Job::Coordinate(const std::function<Status()>& look) {
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(const bool over, coordinator_->WaitOver(kLook));
    if (over) {
      return {};
    }
    COHORT_RETURN_IF_ERROR(coordination_->failure());
    if (look) {
      COHORT_RETURN_IF_ERROR(look());
    }
  }
}

Status Job::Broadcast(std::span<std::byte> bytes) {
  const std::string key = "parameter_server/broadcast/" + std::to_string(broadcasts_++);
  if (is_chief()) {
    return coordination_->Insert(
        key, std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }
  COHORT_ASSIGN_OR_RETURN(const std::string value,
                          coordination_->Wait(key, DeadlineAfter(join_timeout_)));
  if (value.size() != bytes.size()) {
    return FailedPrecondition("Broadcast " + key + " of " + std::to_string(value.size()) +
                              " bytes, this process expects " + std::to_string(bytes.size()) +
                              " [run the same program everywhere]");
  }
  std::memcpy(bytes.data(), value.data(), value.size());
  return {};
}

}  // namespace cohort::ps
