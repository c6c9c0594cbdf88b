// How a process becomes a part of its job: it starts its services, joins coordination, and finds
// the services of the others.
#include "parameter_server/job.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <thread>

#include <fmt/format.h>

#include "grpc_util.h"
#include "parameter_server/frames/wire.h"
#include "parameter_server/job_check.h"
#include "parameter_server/view_watch.h"
#include "process_identity.h"

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;

constexpr char kSchedulerKey[] = "parameter_server/scheduler";
constexpr char kKindKey[] = "parameter_server/kind";

// Of a server that has been in a job before its present chief: the epoch of its values.
std::string EpochKeyOf(int server, std::uint64_t incarnation) {
  return ProcessKey(server, incarnation) + "/epoch";
}

}  // namespace

std::string ProcessKey(int server, std::uint64_t incarnation) {
  return "parameter_server/address/" + std::to_string(server) + "/" + std::to_string(incarnation);
}

Status AgreeOnKind(CoordinationClient& coordination, const ClusterConfig& config,
                   const std::string& kind, Deadline deadline) {
  if (config.is_chief()) {
    return coordination.Insert(kKindKey, kind);
  }
  COHORT_ASSIGN_OR_RETURN(const std::string chiefs, coordination.Wait(kKindKey, deadline));
  if (kind == chiefs) {
    return {};
  }
  Status differs = FailedPrecondition(
      config.task.ToString() + " is of " + kind + ", and " + config.cluster.Chief().ToString() +
      " of " + chiefs +
      " [start all processes, servers too, with the same program, strategy and consistency, of "
      "which hybrid is multi_worker_mirrored]");
  // If nobody can be told, nobody is there.
  (void)coordination.ReportError(differs);
  return differs;
}

Result<std::unique_ptr<Job>> Job::Join(const ClusterConfig& config, const StrategyOptions& options,
                                       const std::string& kind) {
  COHORT_RETURN_IF_ERROR(CheckJob(config, options));
  std::unique_ptr<Job> job(new Job(config, options));
  COHORT_RETURN_IF_ERROR(job->StartServices());
  COHORT_RETURN_IF_ERROR(job->JoinCoordination(/*wait_for_all=*/true, job->join_timeout_));
  // A server joins the next chief when it serves, a worker finds it below.
  if (const Status met = job->Meet(kind); !met.ok() && !job->AwaitChiefLost(met)) {
    return met;
  }
  if (!job->is_server()) {
    COHORT_RETURN_IF_ERROR(job->FindServices());
  }
  return job;
}

// In a job that nobody of it was in before.
Status Job::Meet(const std::string& kind) {
  COHORT_RETURN_IF_ERROR(Publish());
  return AgreeOnKind(*coordination_, config_, kind, DeadlineAfter(join_timeout_));
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
    scheduler_ = std::make_unique<Scheduler>(
        SchedulerOptions{.workers = workers_,
                         .rejoin_timeout = join_timeout_,
                         .backup_workers = backup_workers_,
                         .step_timeout = read_timeout_,
                         .self = config_.task,
                         .on_gone = [this](std::uint64_t client) { Gone(client); },
                         .first_client = NewIncarnation(),
                         .journal = journal_.get(),
                         .log = log_});
    COHORT_ASSIGN_OR_RETURN(
        scheduler_server_,
        SchedulerServer::Start(ListenAddress(WithPort(config_.cluster.Address(config_.task), 0)),
                               *scheduler_));
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
            scheduler_->Lost(task, why);
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
    return coordination_->Insert(ProcessKey(server, coordination_->incarnation()), address);
  }
  if (is_chief()) {
    return coordination_->Insert(
        kSchedulerKey, WithPort(config_.cluster.Address(config_.task), scheduler_server_->port()));
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
  Status status = FindScheduler();
  while (!status.ok() && AwaitChiefLost(status)) {
    COHORT_RETURN_IF_ERROR(FindChief());
    status = FindScheduler();
  }
  return status;
}

Status Job::FindScheduler() {
  COHORT_ASSIGN_OR_RETURN(const std::string scheduler,
                          coordination_->Wait(kSchedulerKey, DeadlineAfter(join_timeout_)));
  {
    const std::lock_guard lock(failure_mutex_);
    scheduler_client_ = SchedulerClient::Make(
        scheduler, chief_.ToString(),
        {.task = config_.task, .incarnation = coordination_->incarnation()}, heartbeat_timeout_);
    // Of an epoch that servers may never have begun no other chief can know.
    scheduler_client_->SetEpoch(met_ ? epoch_ : 0);
    if (!failure_.ok()) {
      scheduler_client_->Abort(failure_);
    }
  }
  const Result<std::uint64_t> number = scheduler_client_->Attach();
  COHORT_RETURN_IF_ERROR(Explain(number.status()));
  number_ = *number;
  if (is_chief()) {
    scheduler_client_->SetEpoch(epoch_);
    return {};
  }
  watch_ = std::make_unique<ViewWatch>(
      SchedulerClient::Make(scheduler, chief_.ToString(),
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
    roll_.Enter(s, incarnation);
  }
  epoch_ = 1;
  if (journal_ != nullptr) {
    return BeginJournal();
  }
  scheduler_->SetView(epoch_, server_addresses_);
  return {};
}

// Servers that have been in a job are in the one that the journal is of: the chief of it is gone,
// and this one takes its place.
Status Job::BeginJournal() {
  const JournalState before = journal_->state();
  std::uint64_t newest = before.epoch;
  bool goes_on = false;
  for (int s = 0; s < num_servers_; ++s) {
    const std::string key = EpochKeyOf(s, roll_.process(s));
    const Result<std::string> epoch = coordination_->Get(key);
    if (epoch.ok()) {
      COHORT_ASSIGN_OR_RETURN(const std::uint64_t of_server, ParseEpoch(key, *epoch));
      goes_on = true;
      newest = std::max<std::uint64_t>(newest, of_server);
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
    scheduler_->Succeed(before);
    why = chief_.ToString() + " was started again, and has the job go back to its last save";
    log_.Warning("takes the place of a chief that is gone, as " + journal_->path() +
                 " tells: the job goes back to its last save");
  }
  scheduler_->SetView(epoch_, server_addresses_, why);
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
    scheduler_->Excuse(worker);
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
  scheduler_client_->SetEpoch(epoch_);
  return {};
}

}  // namespace cohort::ps
