#include "parameter_server/job.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "parameter_server/chief/retirements.h"
#include "parameter_server/frames/wire.h"
#include "process_identity.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;

// How often a process that serves looks whether the job is healthy.
constexpr milliseconds kLook{200};
constexpr char kCoordinatorKey[] = "parameter_server/coordinator";
constexpr char kInitialisedKey[] = "parameter_server/initialised";
constexpr milliseconds kLeastSilence{5'000};  // several times what a view is waited for
// In one recovery, for servers that are lost in the middle of it, and files that cannot be read at
// the moment; between two of them there is a pause, of twice the one before.
constexpr int kMostRollBacks = 10;
constexpr milliseconds kFirstPause{100};
constexpr milliseconds kLastPause{5'000};
std::string ProcessKey(int server, std::uint64_t incarnation) {
  return ServerKey(server) + "/" + std::to_string(incarnation);
}
// Of a server that has been in a job before its present chief: the epoch of its values.
std::string EpochKeyOf(int server, std::uint64_t incarnation) {
  return ProcessKey(server, incarnation) + "/epoch";
}
// Is it the same when it is tried again? What files and servers answer otherwise may pass.
bool IsForGood(const Status& status) {
  switch (status.code()) {
    case StatusCode::kUnavailable:
    case StatusCode::kDeadlineExceeded:
    case StatusCode::kResourceExhausted:
    case StatusCode::kUnknown:
    case StatusCode::kInternal:
      return false;
    default:
      return true;
  }
}
double SecondsSince(std::chrono::steady_clock::time_point begun) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
}

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
  for (const DType wire : {options.server_wire.push, options.server_wire.pull}) {
    if (wire != DType::kFloat32 && wire != DType::kFloat16 && wire != DType::kBFloat16 &&
        wire != DType::kUInt8) {
      return InvalidArgument("server_wire " + std::string(DTypeName(wire)) +
                             " [float32, float16, bfloat16, or uint8: 8 bits and a scale for every "
                             "256 values]");
    }
  }
  if (options.start.mode == StartPolicy::Mode::kQuorum &&
      (options.start.workers < 1 || options.start.workers > workers)) {
    return InvalidArgument("start " + options.start.ToString() + " of a cluster with " +
                           std::to_string(workers) + " workers [a quorum of 1 to " +
                           std::to_string(workers) + ", or elastic]");
  }
  if (options.server_loss != ServerLoss::kRollBack &&
      consistency.mode != Consistency::Mode::kAsynchronous) {
    return InvalidArgument(
        "server_loss " + std::string(ServerLossName(options.server_loss)) + " with consistency " +
        consistency.ToString() +
        ", under which all servers are at the same step [consistency async, or server_loss "
        "kRollBack]");
  }
  if (options.server_loss == ServerLoss::kReplica && cluster.Count(TaskType::kPs) < 2) {
    return InvalidArgument(
        "server_loss kReplica with one ps task: another server would hold the copy of its part "
        "[two ps tasks or more, or server_loss kRollBack]");
  }
  COHORT_RETURN_IF_ERROR(TransportOf(options.communication).status());
  if (options.balance_interval.count() < 0 ||
      (options.balance_interval.count() > 0 &&
       (consistency.synchronous() || options.server_loss != ServerLoss::kRollBack))) {
    return InvalidArgument(
        "balance_interval of " + std::to_string(options.balance_interval.count()) +
        " ms with consistency " + consistency.ToString() +
        (options.server_loss == ServerLoss::kPartial   ? " and server_loss kPartial"
         : options.server_loss == ServerLoss::kReplica ? " and server_loss kReplica"
                                                       : "") +
        ": buckets move where updates are no rounds, and servers that are lost all go back "
        "[consistency async or ssp, server_loss kRollBack, or no balance_interval]");
  }
  if (options.num_devices != 1) {
    return InvalidArgument("parameter_server trains one replica per worker, num_devices is " +
                           std::to_string(options.num_devices) + " [start more workers instead]");
  }
  if (options.devices.size() > 1) {
    return InvalidArgument("parameter_server trains one replica per worker, there are " +
                           std::to_string(options.devices.size()) +
                           " devices [start more workers instead]");
  }
  if (!options.devices.empty() && options.devices.front() == nullptr) {
    return InvalidArgument("a device of StrategyOptions::devices is nullptr");
  }
  return {};
}

}  // namespace

std::string ServerKey(int server) { return "parameter_server/address/" + std::to_string(server); }

// Asks the chief for its view of the servers, on a thread of its own: calls of this process may be
// waiting for one that is gone.
class ViewWatch {
 public:
  ViewWatch(std::unique_ptr<CoordinatorClient> client, std::function<void(const ServerView&)> tell,
            std::function<std::uint64_t()> steps)
      : client_(std::move(client)), tell_(std::move(tell)), steps_(std::move(steps)) {
    thread_ = std::thread([this] { Run(); });
  }
  ~ViewWatch() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    stop_.notify_all();
    client_->Abort(Cancelled("the watch is over"));
    thread_.join();
  }

 private:
  void Run() {
    ServerView last;
    for (;;) {
      const Result<ServerView> view = client_->AwaitView(last.epoch, last.recovering, steps_());
      if (view.ok()) {
        last = *view;
        tell_(last);
      }
      std::unique_lock lock(mutex_);
      if (stopped_ || (!view.ok() && stop_.wait_for(lock, kLook, [this] { return stopped_; }))) {
        return;
      }
    }
  }

  const std::unique_ptr<CoordinatorClient> client_;
  const std::function<void(const ServerView&)> tell_;
  const std::function<std::uint64_t()> steps_;
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopped_ = false;
  std::thread thread_;
};

// What may still report a lost worker goes before what is told of it.
Job::~Job() {
  watch_.reset();
  coordination_.reset();
  coordinator_server_.reset();
  coordination_server_.reset();
  StopRetirements();
}

Job::Job(ClusterConfig config, const StrategyOptions& options)
    : config_(std::move(config)),
      join_timeout_(options.join_timeout),
      heartbeat_timeout_(options.heartbeat_timeout),
      rejoin_grace_(options.rejoin_grace),
      server_loss_(options.server_loss),
      start_(options.start),
      journal_folder_(config_.cluster.Chief().type == TaskType::kChief &&
                              options.rejoin_grace.count() > 0
                          ? options.journal_folder
                          : ""),
      log_(options.log),
      backup_workers_(options.consistency.backup_workers),
      read_timeout_(options.collective_timeout),
      wire_(options.server_wire),
      transport_(OrThrow(TransportOf(options.communication))),
      chief_(config_.cluster.Chief()),
      workers_(config_.cluster.TrainingTasks()),
      num_servers_(config_.cluster.Count(TaskType::kPs)),
      incarnations_(static_cast<std::size_t>(num_servers_), 0),
      whole_(incarnations_),
      whole_copies_(incarnations_) {}

int Job::rank() const {
  return static_cast<int>(std::find(workers_.begin(), workers_.end(), config_.task) -
                          workers_.begin());
}

Result<std::unique_ptr<Job>> Job::Join(const ClusterConfig& config,
                                       const StrategyOptions& options) {
  COHORT_RETURN_IF_ERROR(CheckConfig(config, options));
  std::unique_ptr<Job> job(new Job(config, options));
  COHORT_RETURN_IF_ERROR(job->StartServices());
  COHORT_RETURN_IF_ERROR(job->JoinCoordination(/*wait_for_all=*/true, job->join_timeout_));
  // A server joins the next chief when it serves.
  if (const Status published = job->Publish();
      !published.ok() && !(job->is_server() && job->AwaitChiefLost(published))) {
    return published;
  }
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
    if (chief_may_be_lost()) {
      COHORT_ASSIGN_OR_RETURN(journal_,
                              Journal::Open(FileSystem::Local(), journal_folder_, backup_workers_));
    }
    coordinator_ = std::make_unique<Coordinator>(
        CoordinatorOptions{.workers = workers_,
                           .rejoin_timeout = join_timeout_,
                           .backup_workers = backup_workers_,
                           .step_timeout = read_timeout_,
                           .self = config_.task,
                           .on_gone = [this](std::uint64_t client) { Gone(client); },
                           .first_client = NewIncarnation(),
                           .journal = journal_.get(),
                           .log = log_});
    COHORT_ASSIGN_OR_RETURN(
        coordinator_server_,
        CoordinatorServer::Start(ListenAddress(WithPort(config_.cluster.Address(config_.task), 0)),
                                 *coordinator_));
  }
  return {};
}

Status Job::JoinCoordination(bool wait_for_all, milliseconds timeout) {
  CoordinationOptions options;
  options.join_timeout = timeout;
  options.heartbeat_timeout = heartbeat_timeout_;
  options.heartbeat_interval = std::min(options.heartbeat_interval, heartbeat_timeout_ / 5);
  options.may_leave = [chief = chief_](const TaskId& task) { return task != chief; };
  options.log = log_;
  const std::string address =
      config_.rendezvous.empty() ? config_.cluster.Address(chief_) : config_.rendezvous;
  if (is_chief()) {
    if (start_.mode != StartPolicy::Mode::kAll) {
      options.quorum = {.of = [](const TaskId& task) { return task.type == TaskType::kWorker; },
                        .least = start_.Least(static_cast<int>(workers_.size()))};
    }
    if (journal_ != nullptr) {
      for (const auto& [task, end] : journal_->state().ended) {
        options.ended.insert(task);
      }
    }
    COHORT_ASSIGN_OR_RETURN(
        coordination_server_,
        CoordinationServer::Start(ListenAddress(address), config_.cluster, options));
    coordination_server_->OnTaskLost(
        [this, server = coordination_server_.get()](const TaskId& task, const Status& why) {
          if (task.type == TaskType::kWorker) {
            {
              const std::lock_guard lock(failure_mutex_);
              lost_workers_.insert(task);
            }
            coordinator_->Lost(task, why);
          } else if (task.type == TaskType::kPs) {
            ServerLost(*server, task, why);
          }
        });
  }
  COHORT_ASSIGN_OR_RETURN(
      coordination_,
      CoordinationClient::Join(address, config_.cluster, config_.task, wait_for_all, options));
  coordination_->OnFailure([this](const Status& why) { Fail(why); });
  return {};
}

Status Job::Publish() {
  if (server_ != nullptr) {
    const int server = config_.task.index;
    const std::string address = WithPort(config_.cluster.Address(config_.task), server_->port());
    if (server_->epoch() != 0) {
      COHORT_RETURN_IF_ERROR(coordination_->Insert(EpochKeyOf(server, coordination_->incarnation()),
                                                   std::to_string(server_->epoch())));
    }
    COHORT_RETURN_IF_ERROR(
        coordination_->Insert(ProcessKey(server, coordination_->incarnation()), address));
    // Of the first process; where another may take its place the other key is asked for.
    const Status status = coordination_->Insert(ServerKey(server), address);
    return status.code() == StatusCode::kAlreadyExists ? Status() : status;
  }
  if (is_chief()) {
    return coordination_->Insert(kCoordinatorKey, WithPort(config_.cluster.Address(config_.task),
                                                           coordinator_server_->port()));
  }
  return {};
}

Status Job::FindServices() {
  if (is_chief()) {
    COHORT_RETURN_IF_ERROR(FindServers());
    ExcuseAbsent();
  }
  if (!trains()) {
    return {};
  }
  Status status = FindCoordinator();
  while (!status.ok() && AwaitChiefLost(status)) {
    COHORT_RETURN_IF_ERROR(FindChief());
    status = FindCoordinator();
  }
  return status;
}

Status Job::FindCoordinator() {
  COHORT_ASSIGN_OR_RETURN(const std::string coordinator,
                          coordination_->Wait(kCoordinatorKey, DeadlineAfter(join_timeout_)));
  {
    const std::lock_guard lock(failure_mutex_);
    coordinator_client_ = CoordinatorClient::Make(
        coordinator, chief_.ToString(),
        {.task = config_.task, .incarnation = coordination_->incarnation()}, heartbeat_timeout_);
    // Of an epoch that servers may never have begun no other chief can know.
    coordinator_client_->SetEpoch(met_ ? epoch_ : 0);
    if (!failure_.ok()) {
      coordinator_client_->Abort(failure_);
    }
  }
  const Result<std::uint64_t> number = coordinator_client_->Attach();
  COHORT_RETURN_IF_ERROR(Explain(number.status()));
  number_ = *number;
  if (is_chief()) {
    coordinator_client_->SetEpoch(epoch_);
    return {};
  }
  watch_ = std::make_unique<ViewWatch>(
      CoordinatorClient::Make(coordinator, chief_.ToString(),
                              {.task = config_.task, .incarnation = coordination_->incarnation()},
                              heartbeat_timeout_),
      [this](const ServerView& view) { Told(view); }, [this] { return steps_.load(); });
  return Explain(AwaitView(DeadlineAfter(join_timeout_), std::max<std::uint64_t>(epoch_, 1)));
}

// The first view, in the chief. A server that is lost before may come back.
Status Job::FindServers() {
  {
    const std::lock_guard lock(failure_mutex_);
    stage_ = Stage::kSetup;
  }
  const Deadline deadline = DeadlineAfter(join_timeout_);
  for (int s = 0; s < num_servers_; ++s) {
    std::uint64_t incarnation = 0;
    Result<std::string> address = AddressOf(s, &incarnation);
    while (!address.ok() && std::chrono::steady_clock::now() < deadline) {
      COHORT_RETURN_IF_ERROR(coordination_->failure());
      std::this_thread::sleep_for(milliseconds(20));
      address = AddressOf(s, &incarnation);
    }
    COHORT_RETURN_IF_ERROR(address.status());
    server_addresses_.push_back(*address);
    const std::lock_guard lock(failure_mutex_);
    incarnations_[static_cast<std::size_t>(s)] = incarnation;
  }
  epoch_ = 1;
  if (journal_ != nullptr) {
    return BeginJournal();
  }
  coordinator_->SetView(epoch_, server_addresses_);
  return {};
}

// Servers that have been in a job are in the one that the journal is of: the chief of it is gone,
// and this one takes its place.
Status Job::BeginJournal() {
  const JournalState before = journal_->state();
  std::uint64_t newest = before.epoch;
  bool goes_on = false;
  for (int s = 0; s < num_servers_; ++s) {
    const Result<std::string> epoch =
        coordination_->Get(EpochKeyOf(s, incarnations_[static_cast<std::size_t>(s)]));
    if (epoch.ok()) {
      goes_on = true;
      newest = std::max<std::uint64_t>(newest, std::stoull(*epoch));
    } else if (epoch.status().code() != StatusCode::kNotFound) {
      return epoch.status();
    }
  }
  if (goes_on && before.epoch == 0) {
    return FailedPrecondition(
        "the servers have been in a job whose chief is gone, and there is no journal of it in " +
        journal_folder_ + " [give this chief the folder that the one before had]");
  }
  if (!goes_on) {
    COHORT_RETURN_IF_ERROR(AwaitWorkers(before.ended));
  }
  epoch_ = newest + 1;
  COHORT_RETURN_IF_ERROR(journal_->Begin(goes_on, epoch_));
  std::string why;
  if (goes_on) {
    coordinator_->Succeed(before);
    why = chief_.ToString() + " was started again, and has the job go back to its last save";
    log_.Warning("takes the place of a chief that is gone, as " + journal_->path() +
                 " tells: the job goes back to its last save");
  }
  coordinator_->SetView(epoch_, server_addresses_, why);
  return {};
}

// The job begins, by its start policy.
void Job::ExcuseAbsent() {
  std::string names;
  int present = 0;
  for (const TaskId& worker : workers_) {
    if (start_.mode == StartPolicy::Mode::kAll ||
        coordination_server_->Incarnation(worker).has_value()) {
      ++present;
      continue;
    }
    coordinator_->Excuse(worker);
    names += (names.empty() ? "" : ", ") + worker.ToString();
  }
  if (!names.empty()) {
    log_.Info(fmt::format("begins with {} of {} workers (start {}); {} may come later", present,
                          workers_.size(), start_.ToString(), names));
  }
}

// Those that had ended in another job than this one: the roll call was without them.
Status Job::AwaitWorkers(const std::map<TaskId, JournalState::End>& ended) {
  const Deadline deadline = DeadlineAfter(join_timeout_);
  for (;;) {
    const auto there = std::ranges::count_if(workers_, [this](const TaskId& worker) {
      return coordination_server_->Incarnation(worker).has_value();
    });
    std::string missing;
    for (const auto& [task, end] : ended) {
      const bool present = coordination_server_->Incarnation(task).has_value();
      const std::lock_guard lock(failure_mutex_);
      if (config_.cluster.Contains(task) && !present && !lost_workers_.contains(task)) {
        missing += (missing.empty() ? "" : ", ") + task.ToString() + " (" +
                   config_.cluster.Address(task) + ", not registered)";
      }
    }
    if (missing.empty() || there >= start_.Least(static_cast<int>(workers_.size()))) {
      return {};
    }
    COHORT_RETURN_IF_ERROR(coordination_->failure());
    if (std::chrono::steady_clock::now() >= deadline) {
      Status late = DeadlineExceeded(fmt::format(
          "joining gave up after {:.1f} s, waiting for {} [start the missing tasks, or compare "
          "their addresses with where they run]",
          std::chrono::duration<double>(join_timeout_).count(), missing));
      ReportError(late);  // the others wait for the same tasks
      return late;
    }
    std::this_thread::sleep_for(milliseconds(20));
  }
}

// Of the process that is the server now. Unavailable: none is.
Result<std::string> Job::AddressOf(int server, std::uint64_t* incarnation) {
  const TaskId task = {TaskType::kPs, server};
  const std::optional<std::uint64_t> present = coordination_server_->Incarnation(task);
  Result<std::string> address = present ? coordination_->Get(ProcessKey(server, *present))
                                        : Result<std::string>(NotFound(""));
  if (!address.ok()) {
    return Unavailable(task.ToString() + " is not there [start it again]");
  }
  *incarnation = *present;
  return address;
}

// Until the servers are well; the clients to be made are of that view.
Status Job::AwaitView(Deadline deadline, std::uint64_t least) {
  std::unique_lock lock(failure_mutex_);
  const auto ready = [this, least] {
    return !failure_.ok() || (view_.epoch >= least && !view_.recovering);
  };
  if (!view_changed_.wait_until(lock, deadline, ready)) {
    return DeadlineExceeded(chief_.ToString() + " does not know where the servers are" +
                            (view_.recovering ? ": " + view_.why : ""));
  }
  COHORT_RETURN_IF_ERROR(failure_);
  TakeView();
  coordinator_client_->SetEpoch(epoch_);
  return {};
}

void Job::Told(const ServerView& view) {
  {
    const std::lock_guard lock(failure_mutex_);
    view_ = view;
    heard_ = std::chrono::steady_clock::now();
    if (view.recovering) {
      AbortClients(Unavailable(view.why));
    } else if (view.epoch != epoch_) {
      AbortClients(Unavailable("the servers have been rolled back"));
    }
  }
  view_changed_.notify_all();
}

void Job::Gone(std::uint64_t client) {
  const std::lock_guard lock(failure_mutex_);
  gone_.Add(client);
  if (retirements_ != nullptr) {
    retirements_->Add(client);
  } else {
    untold_.push_back(client);
  }
}

void Job::Fail(const Status& why) {
  const std::lock_guard lock(failure_mutex_);
  if (failure_.ok()) {
    failure_ = why;
  }
  AbortClients(why);
  if (coordinator_client_ != nullptr) {
    coordinator_client_->Abort(why);
  }
  if (coordinator_ != nullptr) {
    coordinator_->Fail(why);
  }
  view_changed_.notify_all();
}

void Job::AbortClients(const Status& why) {
  if (client_ != nullptr) {
    client_->Abort(why);
  }
  if (row_client_ != nullptr) {
    row_client_->Abort(why);
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

void Job::Acknowledge(const EpochKey& epoch, const FinishedSplit& finished) {
  coordinator_->Acknowledge(
      {.task = config_.task, .incarnation = coordination_->incarnation(), .epoch = epoch_}, epoch,
      finished);
}

Status Job::Done() {
  if (left_ || coordination_ == nullptr) {
    return {};
  }
  if (coordinator_client_ == nullptr) {
    return coordination_->failure();
  }
  for (;;) {
    Status status = coordination_->failure();
    if (status.ok()) {
      status = Explain(coordinator_client_->Done());
    }
    if (status.ok() || is_chief() || !chief_may_be_lost()) {
      return status;
    }
    COHORT_RETURN_IF_ERROR(Rejoin(status));  // to tell another chief, where this one is gone
  }
}

Status Job::Leave() {
  if (left_ || coordination_ == nullptr) {
    return {};
  }
  COHORT_RETURN_IF_ERROR(Done());
  left_ = true;
  if (trains() && !is_chief()) {
    coordination_.reset();  // says goodbye; the others go on
    return {};
  }
  if (is_chief()) {
    if (trains()) {
      COHORT_RETURN_IF_ERROR(Coordinate());  // until the other workers are done too
    }
    StopRetirements();
    {
      const std::lock_guard lock(failure_mutex_);
      stage_ = Stage::kLeaving;
    }
    if (client_ != nullptr) {
      COHORT_RETURN_IF_ERROR(Explain(client_->Drain()));
    }
    if (journal_ != nullptr) {
      COHORT_RETURN_IF_ERROR(journal_->Remove());
    }
  }
  return coordination_->Shutdown();
}

void Job::StopRetirements() {
  std::unique_ptr<Retirements> stopped;
  const std::lock_guard lock(failure_mutex_);
  stopped = std::move(retirements_);
}

void Job::StartRetirements() {
  // Unless the servers go into another epoch first, which begins with all of them.
  auto retirements = std::make_unique<Retirements>(
      [client = client_.get()](std::uint64_t gone) { return client->Retire(gone); },
      [this](const Status& why) {
        log_.Warning("a worker that was given up is not known to all servers yet: " +
                     why.message());
      });
  const std::lock_guard lock(failure_mutex_);
  for (const std::uint64_t client : std::exchange(untold_, {})) {
    retirements->Add(client);
  }
  retirements_ = std::move(retirements);
}

Client& Job::Connect(const ModelSpec& spec) {
  spec_ = spec;
  MakeClients(epoch_);
  if (is_chief()) {
    StartRetirements();
  }
  return *client_;
}

// Of `epoch`, at server_addresses_. Numbers of pushes begin anew with a client, which servers
// expect in an epoch.
void Job::MakeClients(std::uint64_t epoch) {
  const ClientOptions options{
      .client = number_ != 0 ? number_ : coordination_->incarnation(),
      .task = config_.task.ToString(),
      .epoch = epoch,
      .peer_timeout = heartbeat_timeout_,
      .read_timeout = read_timeout_,
      // What the chief has is saved, and evaluated.
      .wire = {.push = wire_.push, .pull = is_chief() ? DType::kFloat32 : wire_.pull},
      .transport = transport_,
      .pushes = pushes_,
      .row_pushes = row_pushes_};
  auto client = Client::Make(spec_, server_addresses_, options);
  if (spec_.copies && client_ != nullptr) {
    client->TakeOver(*client_);
  }
  auto row_client =
      spec_.tables.empty() ? nullptr : RowClient::Make(spec_, server_addresses_, options);
  if (coordinator_client_ != nullptr) {
    coordinator_client_->SetEpoch(epoch);
  }
  const std::lock_guard lock(failure_mutex_);
  epoch_ = epoch;
  client_.swap(client);
  row_client_.swap(row_client);
  if (!failure_.ok()) {
    AbortClients(failure_);
  } else if (!lost_.empty()) {
    AbortClients(lost_.begin()->second.why);
  } else if (view_.recovering || view_.epoch > epoch_) {
    AbortClients(Unavailable(view_.recovering ? view_.why : "the servers have been rolled back"));
  }
}

// ---- When a server is lost ----------------------------------------------------------------------

// On a thread of the coordination service.
void Job::ServerLost(CoordinationServer& server, const TaskId& task, const Status& how) {
  const Status why = Unavailable(how.message());  // also where another has replaced it
  const std::optional<std::uint64_t> present = server.Incarnation(task);
  {
    const std::lock_guard lock(failure_mutex_);
    const std::uint64_t known = incarnations_[static_cast<std::size_t>(task.index)];
    if (known == 0 || present == known || stage_ == Stage::kLeaving) {
      return;  // nobody knows the one that was lost, or knows it any more
    }
    if (stage_ == Stage::kTraining && rejoin_grace_.count() > 0) {
      ++losses_;
      lost_.try_emplace(task.index, Loss{why, std::chrono::steady_clock::now()});
      coordinator_->ServerLost(why);
      AbortClients(why);
      return;
    }
  }
  server.Fail(why);
}

void Job::BeginTraining() {
  const std::lock_guard lock(failure_mutex_);
  if (stage_ == Stage::kSetup) {
    stage_ = Stage::kTraining;
  }
}

Status Job::EndTraining() {
  Status why;
  {
    const std::lock_guard lock(failure_mutex_);
    if (stage_ == Stage::kTraining) {
      stage_ = Stage::kOver;
    }
    if (!lost_.empty()) {
      why = lost_.begin()->second.why;
    }
  }
  return why.ok() ? why : FailJob(why);
}

Status Job::FailJob(const Status& why) {
  coordination_server_->Fail(why);
  return Explain(why);
}

std::string Job::NamesOfLost() const {
  const std::lock_guard lock(failure_mutex_);
  std::string names;
  for (const auto& [server, loss] : lost_) {
    names += (names.empty() ? "" : ", ") + TaskId{TaskType::kPs, server}.ToString();
  }
  return names;
}

// This process may have noticed before the coordination service does.
bool Job::AwaitLoss(const Status& error) {
  if (error.code() != StatusCode::kUnavailable) {
    return false;
  }
  const Deadline deadline = DeadlineAfter(heartbeat_timeout_);
  for (;;) {
    {
      const std::lock_guard lock(failure_mutex_);
      if (stage_ != Stage::kTraining || !failure_.ok()) {
        return false;
      }
      if (!lost_.empty()) {
        return true;
      }
    }
    if (std::chrono::steady_clock::now() >= deadline || !coordination_->failure().ok()) {
      return false;
    }
    std::this_thread::sleep_for(milliseconds(10));
  }
}

// Until there is a process for every server; server_addresses_ are theirs then.
Status Job::AwaitServers() {
  for (int s = 0; s < num_servers_; ++s) {
    const auto begun = std::chrono::steady_clock::now();
    for (;;) {
      std::uint64_t incarnation = 0;
      const Result<std::string> address = AddressOf(s, &incarnation);
      std::unique_lock lock(failure_mutex_);
      std::uint64_t& known = incarnations_[static_cast<std::size_t>(s)];
      const auto lost = lost_.find(s);
      if (address.ok() && (lost == lost_.end() || known != incarnation)) {
        known = incarnation;
        server_addresses_[static_cast<std::size_t>(s)] = *address;
        if (lost != lost_.end()) {
          lost_.erase(lost);
        }
        break;
      }
      COHORT_RETURN_IF_ERROR(failure_);
      // It may be lost without standing there: as soon as it was known.
      const bool known_lost = lost != lost_.end();
      if (SecondsSince(known_lost ? lost->second.since : begun) * 1000 >=
          static_cast<double>(rejoin_grace_.count())) {
        const std::string name = TaskId{TaskType::kPs, s}.ToString();
        return Unavailable(
            (known_lost ? lost->second.why : address.status()).message() +
            "; no other process has taken its place within " +
            fmt::format("{:g}", static_cast<double>(rejoin_grace_.count()) / 1000) +
            " s (rejoin_grace) [start " + name +
            " again with its TF_CONFIG in that time; the job itself, started again, goes on from "
            "its last save]");
      }
      lock.unlock();
      std::this_thread::sleep_for(milliseconds(20));
    }
  }
  return {};
}

// `without`: servers that have no values, or not all of them.
Status Job::BeginEpoch(const Restore& restore, Missing* missing, std::uint64_t* newest,
                       std::int64_t* step) {
  std::vector<std::uint64_t> retired;
  {
    const std::lock_guard lock(failure_mutex_);
    retired = gone_.Ranges();
    untold_.clear();
  }
  COHORT_RETURN_IF_ERROR(client_->Declare());
  if (keeps()) {
    AddUnknown(missing);
    COHORT_ASSIGN_OR_RETURN(const Client::Kept kept, client_->BeginKeeping(retired));
    *newest = std::max(*newest, kept.version);
    missing->parts.insert(kept.without.begin(), kept.without.end());
    missing->copies.insert(kept.without_a_copy.begin(), kept.without_a_copy.end());
    COHORT_RETURN_IF_ERROR(Mend(missing));
    const Lost only = {.servers = {missing->parts.begin(), missing->parts.end()},
                       .version = *newest};
    if (!missing->parts.empty()) {  // else the lost ones have, again, all that they had
      COHORT_ASSIGN_OR_RETURN(*step, restore(&only));
    }
  } else {
    COHORT_ASSIGN_OR_RETURN(const std::uint64_t version, client_->Begin(retired));
    *newest = std::max(*newest, version);
    COHORT_ASSIGN_OR_RETURN(*step, restore(nullptr));
  }
  for (int s = 0; s < num_servers_; ++s) {
    NoteWhole(s, /*part=*/true, /*copy=*/true);
  }
  StartRetirements();
  return {};
}

// A server of whose parameters none are its own cannot tell whether it has its rows: another
// process than is known to have them may have begun an epoch without, in a recovery that failed.
void Job::AddUnknown(Missing* missing) const {
  std::set<int> tell;
  for (const Chunk& chunk : client_->chunks()) {
    tell.insert(chunk.server);
  }
  const std::lock_guard lock(failure_mutex_);
  for (int s = 0; s < num_servers_; ++s) {
    if (tell.contains(s)) {
      continue;
    }
    const auto at = static_cast<std::size_t>(s);
    if (whole_[at] != incarnations_[at]) {
      missing->parts.insert(s);
    }
    const auto holder = static_cast<std::size_t>(CopyHolder(s, num_servers_));
    if (spec_.copies && whole_copies_[at] != incarnations_[holder]) {
      missing->copies.insert(s);
    }
  }
}

void Job::NoteWhole(int server, bool part, bool copy) {
  const std::lock_guard lock(failure_mutex_);
  const auto at = static_cast<std::size_t>(server);
  if (part) {
    whole_[at] = incarnations_[at];
  }
  if (copy) {
    whole_copies_[at] = incarnations_[static_cast<std::size_t>(CopyHolder(server, num_servers_))];
  }
}

// What there is a copy of comes from there, and copies are made anew. What is left in `missing`
// is lost together with its copy. Values last: with them a part counts as there.
Status Job::Mend(Missing* missing) {
  const auto mend = [this](int server, Client::Mend which) -> Status {
    for (int t = 0; t < static_cast<int>(spec_.tables.size()); ++t) {
      COHORT_RETURN_IF_ERROR(row_client_->CopyPart(t, server, which));
    }
    COHORT_RETURN_IF_ERROR(client_->CopyPushes(server, which));
    return client_->CopyPart(server, which);
  };
  for (const int server : std::set<int>(missing->parts)) {
    if (spec_.copies && !missing->copies.contains(server)) {
      COHORT_RETURN_IF_ERROR(mend(server, Client::Mend::kServer));
      NoteWhole(server, /*part=*/true, /*copy=*/false);
      missing->parts.erase(server);
    }
  }
  for (const int server : std::set<int>(missing->copies)) {
    if (!missing->parts.contains(server)) {
      COHORT_RETURN_IF_ERROR(mend(server, Client::Mend::kCopy));
      NoteWhole(server, /*part=*/false, /*copy=*/true);
      missing->copies.erase(server);
    }
  }
  return {};
}

void Job::StepDone() {
  ++steps_;
  if (spec_.copies) {
    pushes_ = client_->pushes();
    row_pushes_ = row_client_ == nullptr ? std::vector<std::uint64_t>() : row_client_->pushes();
  }
}

Status Job::Recover(const Status& error, const Restore& restore) {
  if (!AwaitLoss(error)) {
    return Explain(error);
  }
  const auto begun = std::chrono::steady_clock::now();
  std::string names = NamesOfLost();
  log_.Warning(fmt::format(
      "{} is lost, and the workers wait: {} goes on from {} when another process takes its place, "
      "within {:g} s",
      names, keeps() ? "it" : "the job", spec_.copies ? "the copy of its part" : "the last save",
      static_cast<double>(rejoin_grace_.count()) / 1000));
  const std::int64_t steps_before = coordinator_->advance().steps;
  std::uint64_t newest = 0;
  Missing missing;
  Status last = error;
  milliseconds pause = kFirstPause;
  for (int attempt = 0; attempt < kMostRollBacks; ++attempt) {
    if (attempt > 0) {
      const Deadline next = DeadlineAfter(pause);
      pause = std::min(2 * pause, kLastPause);
      while (std::chrono::steady_clock::now() < next) {
        COHORT_RETURN_IF_ERROR(coordination_->failure());
        std::this_thread::sleep_for(milliseconds(10));
      }
    }
    int seen = 0;
    {
      const std::lock_guard lock(failure_mutex_);
      seen = losses_;
    }
    names = attempt == 0 ? names : NamesOfLost();
    if (const Status there = AwaitServers(); !there.ok()) {
      return FailJob(there);
    }
    StopRetirements();
    if (journal_ != nullptr) {
      if (const Status noted = journal_->Epoch(epoch_ + 1); !noted.ok()) {
        return FailJob(noted);
      }
    }
    MakeClients(epoch_ + 1);
    log_.Info(fmt::format("{} there: {}", names.empty() ? "all are" : names + " is",
                          spec_.copies ? "it gets what the copy of its part has"
                          : keeps()    ? "it gets its part of the last save"
                                       : "the servers go back to the last save"));
    std::int64_t step = 0;
    last = BeginEpoch(restore, &missing, &newest, &step);
    if (!last.ok() && IsForGood(last)) {
      return FailJob(last);
    }
    if (!last.ok()) {
      log_.Warning(fmt::format("going back to the last save has failed, {} of {} times: {}",
                               attempt + 1, kMostRollBacks, last.ToString()));
      continue;
    }
    {
      const std::lock_guard lock(failure_mutex_);
      if (losses_ != seen) {
        last = Unavailable("another server was lost while the servers went back to the last save");
        continue;
      }
      last = keeps()
                 ? coordinator_->GoOn(missing.parts.empty() ? std::nullopt : std::optional(step),
                                      epoch_, server_addresses_)
                 : coordinator_->RollBack(step, epoch_, server_addresses_);
    }
    if (!last.ok()) {
      return FailJob(last);
    }
    work_stands_ = keeps();
    if (keeps() && missing.parts.empty()) {
      log_.Warning(fmt::format("all servers have what they had; the job goes on after {:.1f} s",
                               SecondsSince(begun)));
      return {};
    }
    if (keeps()) {
      const std::int64_t lost = std::max<std::int64_t>(
          {static_cast<std::int64_t>(newest) - step, coordinator_->StepsSince(step), 0});
      lost_updates_ += lost;
      log_.Warning(fmt::format(
          "{} of {} servers go on from step {}, the others as they are: {} updates of their parts "
          "are lost; the job goes on after {:.1f} s",
          missing.parts.size(), num_servers_, step, lost, SecondsSince(begun)));
      return {};
    }
    // All servers may have been lost, and with them how far they were.
    const std::int64_t undone = std::max(static_cast<std::int64_t>(newest) - step,
                                         steps_before - coordinator_->advance().steps);
    log_.Warning(fmt::format("rolled back {} steps to step {}; the job goes on after {:.1f} s",
                             std::max<std::int64_t>(undone, 0), step, SecondsSince(begun)));
    return {};
  }
  return FailJob({last.code(), fmt::format("going back to the last save has failed {} times: {}",
                                           kMostRollBacks, last.message())});
}

Status Job::Rejoin(const Status& error) {
  if (watch_ == nullptr ||
      (error.code() != StatusCode::kUnavailable && !ChiefLost() && !AwaitChiefLost(error))) {
    return Explain(error);
  }
  const auto begun = std::chrono::steady_clock::now();
  bool found = false;
  Status status = ChiefLost() ? error : AwaitNextView();
  while (!status.ok()) {
    if (!ChiefLost() && !AwaitChiefLost(status)) {
      return status.code() == StatusCode::kDeadlineExceeded ? Explain(error) : status;
    }
    COHORT_RETURN_IF_ERROR(FindChief());
    status = FindCoordinator();
    found = true;
  }
  work_stands_ = work_stands_ && !found;  // what this process held is another's
  if (client_ != nullptr) {
    MakeClients(epoch_);
  } else {
    coordinator_client_->SetEpoch(epoch_);
  }
  log_.Info(fmt::format("goes on in epoch {} of the servers, after {:.1f} s", epoch_,
                        SecondsSince(begun)));
  return {};
}

// The servers' next epoch, of which the clients to be made are. DeadlineExceeded: the chief does
// not say that anything is the matter with the servers.
Status Job::AwaitNextView() {
  const auto begun = std::chrono::steady_clock::now();
  std::unique_lock lock(failure_mutex_);
  for (bool said = false; view_.epoch <= epoch_ || view_.recovering;) {
    COHORT_RETURN_IF_ERROR(failure_);
    // While the chief waits for a server, it has the deadline.
    const auto silent_since = view_.recovering ? heard_ : begun;
    if (std::chrono::steady_clock::now() - silent_since >=
        std::max(heartbeat_timeout_, kLeastSilence)) {
      return DeadlineExceeded("");
    }
    if (view_.recovering && !std::exchange(said, true)) {
      log_.Info("waits for the servers: " + view_.why);
    }
    view_changed_.wait_for(lock, kLook);
  }
  TakeView();
  return {};
}

// With the lock held.
void Job::TakeView() {
  work_stands_ = view_.rolled_back <= epoch_;
  epoch_ = view_.epoch;
  server_addresses_ = view_.addresses;
}

bool Job::ChiefLost() const {
  return chief_may_be_lost() && !is_chief() && coordination_ != nullptr &&
         coordination_->service_lost();
}

// Is `error` that the chief is lost? A call may learn that before the heartbeats do, from the
// service of a successor, which does not know this process.
bool Job::AwaitChiefLost(const Status& error) const {
  if (!chief_may_be_lost() || is_chief() || coordination_ == nullptr ||
      (error.code() != StatusCode::kUnavailable && error.code() != StatusCode::kAborted)) {
    return false;
  }
  const Deadline deadline = DeadlineAfter(heartbeat_timeout_);
  for (;;) {
    const bool known = !coordination_->failure().ok();
    if (coordination_->service_lost()) {
      return true;
    }
    if (known || std::chrono::steady_clock::now() >= deadline) {
      return false;
    }
    std::this_thread::sleep_for(milliseconds(10));
  }
}

// In another process than the chief, which is lost: joins the one in its place.
Status Job::FindChief() {
  const Status why = coordination_->failure();
  const double grace = static_cast<double>(rejoin_grace_.count()) / 1000;
  log_.Warning(
      fmt::format("{}; waits for another process in its place, for {:g} s", why.message(), grace));
  watch_.reset();
  coordination_.reset();
  {
    const std::lock_guard lock(failure_mutex_);
    coordinator_client_.reset();
    failure_ = OkStatus();
    view_ = {};
  }
  const Deadline deadline = DeadlineAfter(rejoin_grace_);
  Status joined;
  do {  // this one may be lost, too
    const auto left = std::chrono::ceil<milliseconds>(deadline - std::chrono::steady_clock::now());
    joined = JoinCoordination(/*wait_for_all=*/false, std::max(left, milliseconds(1)));
  } while ((joined.code() == StatusCode::kUnavailable || joined.code() == StatusCode::kAborted) &&
           std::chrono::steady_clock::now() < deadline);
  if (joined.code() == StatusCode::kDeadlineExceeded) {
    return Unavailable(fmt::format(
        "{}; no other process has taken its place within {:g} s (rejoin_grace) [start {} again "
        "with its TF_CONFIG in that time; the job itself, started again, goes on from its last "
        "save]",
        why.message(), grace, chief_.ToString()));
  }
  return joined;
}

// -------------------------------------------------------------------------------------------------

Status Job::Initialised() {
  if (is_chief()) {
    for (int s = 0; s < num_servers_; ++s) {
      NoteWhole(s, /*part=*/true, /*copy=*/true);
    }
    return coordination_->Insert(kInitialisedKey, "1");
  }
  COHORT_RETURN_IF_ERROR(
      coordination_->Wait(kInitialisedKey, DeadlineAfter(join_timeout_)).status());
  met_ = true;
  return {};
}

Status Job::OpenDataset(int dataset, const DatasetInfo& info) {
  for (;;) {
    const Status status = Explain(coordinator_client_->OpenDataset(dataset, info));
    if (status.ok() || is_chief() || !chief_may_be_lost()) {
      return status;
    }
    COHORT_RETURN_IF_ERROR(Rejoin(status));
  }
}

void Job::ReportError(const Status& error) {
  if (coordination_ != nullptr && !error.ok()) {
    // If nobody can be told, nobody is there.
    (void)coordination_->ReportError(error);
  }
}

Status Job::ServeVariables() {
  while (!server_->WaitDrained(DeadlineAfter(kLook))) {
    if (const Status failure = coordination_->failure(); !failure.ok()) {
      if (!ChiefLost()) {
        return failure;
      }
      COHORT_RETURN_IF_ERROR(FindChief());
      if (const Status published = Publish(); !published.ok() && !AwaitChiefLost(published)) {
        return published;
      }
      log_.Info("has joined " + chief_.ToString() + " anew");
    }
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

Status Job::BetweenUpdates(const std::function<Status(const Coordinator::Cut& cut)>& fn,
                           const std::function<void(const std::string& why)>& late) {
  // A process that trains as well must not wait for work that may be left to itself: what a lost
  // worker held, or a part of the round. The next step is as good a place to save.
  const bool trains = config_.task.type != TaskType::kChief;
  const auto begun = std::chrono::steady_clock::now();
  const Deadline patience = begun + 2 * heartbeat_timeout_;
  const Deadline give_up = std::max(patience, begun + 2 * coordinator_->longest_piece());
  const auto left_to_itself = [&] {
    return (trains && (coordinator_->WorkIsBack() ||
                       (backup_workers_ > 0 && std::chrono::steady_clock::now() >= patience))) ||
           (coordinator_->WorkIsBack() && coordinator_->WorkersHaveLeft());
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
      if (again && std::chrono::steady_clock::now() >= give_up) {
        again = false;
        late(fmt::format(
            "{} for {:.1f} s",
            cut->has_value() ? "servers do not answer" : coordinator_->AtWork() + " was waited for",
            SecondsSince(begun)));
      }
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
  Result<std::string> value = coordination_->Wait(key, DeadlineAfter(join_timeout_));
  while (!value.ok()) {
    COHORT_RETURN_IF_ERROR(chief_may_be_lost() ? Rejoin(value.status()) : value.status());
    value = coordination_->Wait(key, DeadlineAfter(join_timeout_));
  }
  if (value->size() != bytes.size()) {
    return FailedPrecondition("Broadcast " + key + " of " + std::to_string(value->size()) +
                              " bytes, this process expects " + std::to_string(bytes.size()) +
                              " [run the same program everywhere]");
  }
  std::memcpy(bytes.data(), value->data(), value->size());
  return {};
}

}  // namespace cohort::ps
