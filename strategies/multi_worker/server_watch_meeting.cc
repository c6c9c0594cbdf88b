// ServerWatch, how the workers meet: at the beginning, and after a loss. The chief says who does;
// the others do what it says under keys of the coordination service.

#include <charconv>
#include <optional>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "multi_worker/crew.h"
#include "multi_worker/server_watch.h"
#include "parameter_server/job.h"

namespace cohort {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// All have met that the job has begun with; and there is nothing more to come to.
constexpr char kMetKey[] = "in_step/met";
constexpr char kOverKey[] = "in_step/over";

double Seconds(milliseconds duration) { return static_cast<double>(duration.count()) / 1000; }

// Of which every process is asked once, if at all.
std::string InvitationKey(const TaskId& worker, std::uint64_t process) {
  return fmt::format("in_step/invited/{}/{}", worker.ToString(), process);
}

// Of a term, to which its key belongs.
std::string StoppedKey(const TaskId& worker, std::uint64_t process) {
  return fmt::format("stopped/{}/{}", worker.ToString(), process);
}

}  // namespace

// ---- The beginning ------------------------------------------------------------------------------

Status ServerWatch::Meet() {
  if (!is_chief()) {
    return AwaitInvitation();
  }
  for (const TaskId& worker : crew_) {
    const std::optional<std::uint64_t> present = server_->Incarnation(worker);
    if (!present.has_value()) {
      // Unless it has said why it left.
      return server_->Fail(Unavailable(worker.ToString() + " was lost before the job had met"));
    }
    processes_[worker] = *present;
    const std::lock_guard lock(mutex_);
    workers_.Enter(worker, *present);
  }
  for (const auto& [worker, process] : processes_) {
    if (worker != config_.task) {
      COHORT_RETURN_IF_ERROR(Invite(worker, process, term()));
    }
  }
  return client_->Insert(kMetKey, "");
}

Status ServerWatch::Invite(const TaskId& worker, std::uint64_t process, std::uint64_t term) {
  return client_->Insert(InvitationKey(worker, process),
                         std::to_string(term) + "\n" + Crew::Text(crew_));
}

// A process that comes when all have met is a spare, for as long as the job has use for one.
Status ServerWatch::AwaitInvitation() {
  const std::string key = InvitationKey(config_.task, client_->incarnation());
  const Deadline deadline = DeadlineAfter(join_timeout_);
  for (bool spare = false;;) {
    const Result<std::string> said = client_->Wait(key, DeadlineAfter(kSlice));
    if (said.ok()) {
      return TakeInvitation(*said);
    }
    if (said.status().code() != StatusCode::kDeadlineExceeded) {
      return said.status();
    }
    if (!spare && client_->Get(kMetKey).ok()) {
      spare = true;
      log_.Info("waits until the job goes back to a save, and takes this process with it");
    }
    if (spare && client_->Get(kOverKey).ok()) {
      return Aborted("the job has ended without " + config_.task.ToString() +
                     ", for which the others had not waited");
    }
    if (!spare && steady_clock::now() >= deadline) {
      return DeadlineExceeded(fmt::format("{} has not said within {:g} s who the workers are",
                                          config_.cluster.Chief().ToString(),
                                          Seconds(join_timeout_)));
    }
  }
}

Status ServerWatch::TakeInvitation(const std::string& text) {
  const std::size_t end = text.find('\n');
  std::uint64_t term = 0;
  const auto [rest, error] =
      std::from_chars(text.data(), text.data() + std::min(end, text.size()), term);
  if (end == text.npos || error != std::errc()) {
    return Internal("an invitation to no term: " + text);
  }
  COHORT_ASSIGN_OR_RETURN(crew_, Crew::Parse(std::string_view(text).substr(end + 1)));
  if (term > 0) {
    joined_in_training_ = true;
    {
      const std::lock_guard lock(mutex_);
      term_ = term - 1;
    }
    BeginTerm();
  }
  return {};
}

// ---- After a loss -------------------------------------------------------------------------------

Status ServerWatch::AwaitNextTerm() {
  // The chief gives up in time, which is an error of the job; a worker may be in the middle of a
  // step.
  const Deadline deadline = DeadlineAfter(num_servers_ * rejoin_grace_ + 2 * worker_patience_ +
                                          join_timeout_ + collective_timeout_);
  if (is_chief()) {
    if (const Status there = Gather(deadline); !there.ok()) {
      return server_->Fail(there);
    }
  } else {
    log_.Info("waits for the others: " + loss().message());
    COHORT_RETURN_IF_ERROR(
        client_->Insert(Key(StoppedKey(config_.task, client_->incarnation())), ""));
    COHORT_ASSIGN_OR_RETURN(const std::string next, client_->Wait(Key("next"), deadline));
    COHORT_ASSIGN_OR_RETURN(crew_, Crew::Parse(next));
  }
  BeginTerm();
  return {};
}

Status ServerWatch::Gather(Deadline deadline) {
  SayWhoIsLost();
  for (bool all = false; !all;) {
    COHORT_RETURN_IF_ERROR(FindServers(rejoin_grace_));
    COHORT_RETURN_IF_ERROR(FindWorkers());
    COHORT_ASSIGN_OR_RETURN(all, AwaitStopped(deadline));
  }
  return Announce();
}

void ServerWatch::SayWhoIsLost() const {
  std::string servers;
  std::string workers;
  {
    const std::lock_guard lock(mutex_);
    servers = roll_.NamesOfLost();
    workers = workers_.NamesOfLost();
  }
  if (!servers.empty()) {
    log_.Warning(fmt::format(
        "{} is lost, and the workers wait: the job goes on from the last save when another process "
        "takes its place, within {:g} s",
        servers, Seconds(rejoin_grace_)));
  }
  if (!workers.empty()) {
    log_.Warning(fmt::format(
        "{} is lost, and the workers wait: the job goes on from the last save when another process "
        "takes its place, or after {:g} s without it",
        workers, Seconds(worker_patience_)));
  }
}

Status ServerWatch::Announce() {
  {
    const std::lock_guard lock(mutex_);
    crew_ = workers_.tasks();
  }
  std::map<TaskId, std::uint64_t> before = std::exchange(processes_, {});
  std::string come;
  for (const TaskId& worker : crew_) {
    const std::lock_guard lock(mutex_);
    processes_[worker] = workers_.process(worker);
    if (before[worker] != processes_[worker]) {
      come += (come.empty() ? "" : ", ") + worker.ToString();
    }
  }
  const bool as_before = come.empty() && processes_ == before;
  log_.Info(as_before ? "all are there: the workers go back to the last save"
                      : fmt::format("{} of {} workers go back to the last save{}", crew_.size(),
                                    config_.cluster.TrainingTasks().size(),
                                    come.empty() ? "" : ", with another process for " + come));
  COHORT_RETURN_IF_ERROR(client_->Insert(Key("next"), Crew::Text(crew_)));
  for (const auto& [worker, process] : processes_) {
    if (before[worker] != process) {
      COHORT_RETURN_IF_ERROR(Invite(worker, process, term() + 1));
    }
  }
  return {};
}

Result<bool> ServerWatch::AwaitStopped(Deadline deadline) {
  for (const auto& [worker, process] : processes_) {
    if (worker != config_.task) {
      COHORT_ASSIGN_OR_RETURN(const bool stopped, AwaitStop(worker, process, deadline));
      if (!stopped) {
        return false;
      }
    }
  }
  const std::lock_guard lock(mutex_);
  return roll_.complete() && workers_.complete();
}

Result<bool> ServerWatch::AwaitStop(const TaskId& worker, std::uint64_t process,
                                    Deadline deadline) {
  const std::string key = Key(StoppedKey(worker, process));
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      if (workers_.process(worker) != process) {
        return true;  // it was lost, and that is seen to
      }
      if (workers_.loss(worker) != nullptr) {
        return false;
      }
    }
    const Result<std::string> said = client_->Wait(key, DeadlineAfter(kPause));
    if (said.ok()) {
      return true;
    }
    if (said.status().code() != StatusCode::kDeadlineExceeded) {
      return said.status();
    }
    if (steady_clock::now() >= deadline) {
      return DeadlineExceeded(worker.ToString() +
                              " has not stopped after the loss of another process: its step "
                              "function has not returned");
    }
  }
}

// ---- Workers ------------------------------------------------------------------------------------

Status ServerWatch::FindWorkers() {
  Status lost;  // why the first is that the others do without
  for (const TaskId& worker : config_.cluster.TrainingTasks()) {
    COHORT_RETURN_IF_ERROR(FindWorker(worker, lost));
  }
  const std::lock_guard lock(mutex_);
  return workers_.size() < min_workers_ ? TooFewAreLeft(lost) : OkStatus();
}

// Until it is there, or done without. Of a process that runs the program from its beginning nobody
// else would be at its second training.
Status ServerWatch::FindWorker(const TaskId& worker, Status& lost) {
  for (;;) {
    const std::optional<std::uint64_t> present = server_->Incarnation(worker);
    bool entered = false;
    {
      const std::lock_guard lock(mutex_);
      const std::uint64_t known = workers_.process(worker);
      const WorkerRoll::Loss* const loss = workers_.loss(worker);
      if (known != 0 && loss == nullptr) {
        return {};
      }
      const bool replaceable = trainings_ == 1;
      if (present.has_value() && present != known && replaceable) {
        workers_.Enter(worker, *present);
        entered = true;
      } else if (known == 0) {
        return {};
      } else if (!replaceable || steady_clock::now() - loss->since >= worker_patience_) {
        lost = lost.ok() ? loss->why : lost;
        workers_.Drop(worker);
        return {};
      }
    }
    if (entered) {
      if (server_->Incarnation(worker) == present) {
        return {};  // if it is lost from here on, TaskLost knows it
      }
      const std::lock_guard lock(mutex_);
      workers_.Lost(worker, Unavailable(worker.ToString() + " was lost as soon as it was there"));
      continue;
    }
    COHORT_RETURN_IF_ERROR(client_->failure());
    std::this_thread::sleep_for(kLook);
  }
}

Status ServerWatch::TooFewAreLeft(const Status& lost) const {
  return Unavailable(fmt::format(
      "{}; no other process has taken its place within {:g} s (worker_patience), and {} workers "
      "are "
      "left of the {} that go on at least (min_workers) [start it again with its TF_CONFIG in that "
      "time, or go on with fewer; the job itself, started again, goes on from its last save]",
      lost.message(), Seconds(worker_patience_), workers_.size(), min_workers_));
}

// ---- Servers ------------------------------------------------------------------------------------

// Of the process that is the server now. Unavailable: none is.
Result<std::string> ServerWatch::AddressOf(int server, std::uint64_t* incarnation) const {
  const TaskId task = {TaskType::kPs, server};
  const std::optional<std::uint64_t> present = server_->Incarnation(task);
  Result<std::string> address = present.has_value() ? client_->Get(ps::ProcessKey(server, *present))
                                                    : Result<std::string>(NotFound(""));
  if (!address.ok()) {
    return Unavailable(task.ToString() + " is not there [start it again]");
  }
  *incarnation = *present;
  return address;
}

Status ServerWatch::FindServers(milliseconds patience) {
  addresses_.assign(static_cast<std::size_t>(num_servers_), "");
  for (int s = 0; s < num_servers_; ++s) {
    COHORT_ASSIGN_OR_RETURN(addresses_[static_cast<std::size_t>(s)], FindServer(s, patience));
  }
  return {};
}

Result<std::string> ServerWatch::FindServer(int server, milliseconds patience) {
  const auto begun = steady_clock::now();
  for (;;) {
    std::uint64_t incarnation = 0;
    const Result<std::string> address = AddressOf(server, &incarnation);
    bool entered = false;
    {
      const std::lock_guard lock(mutex_);
      const ps::ServerRoll::Loss* const loss = roll_.loss(server);
      if (address.ok() && (loss == nullptr || roll_.process(server) != incarnation)) {
        roll_.Enter(server, incarnation);
        entered = true;
      } else if (steady_clock::now() - (loss != nullptr ? loss->since : begun) >= patience) {
        return loss != nullptr ? NobodyCame(server, loss->why) : address.status();
      }
    }
    if (entered && IsStillThere(server, incarnation)) {
      return address;
    }
    COHORT_RETURN_IF_ERROR(client_->failure());
    std::this_thread::sleep_for(kLook);
  }
}

// Of one that has just been entered. If it was lost before that, TaskLost knew it not, and nobody
// says so again; if it is lost from here on, TaskLost knows it.
bool ServerWatch::IsStillThere(int server, std::uint64_t incarnation) {
  const TaskId task = {TaskType::kPs, server};
  if (server_->Incarnation(task) == incarnation) {
    return true;
  }
  const std::lock_guard lock(mutex_);
  roll_.Lost(server, Unavailable(task.ToString() + " was lost as soon as it was there"));
  return false;
}

Status ServerWatch::NobodyCame(int server, const Status& why) const {
  return Unavailable(fmt::format(
      "{}; no other process has taken its place within {:g} s (rejoin_grace) [start {} again with "
      "its TF_CONFIG in that time; the job itself, started again, goes on from its last save]",
      why.message(), Seconds(rejoin_grace_), TaskId{TaskType::kPs, server}.ToString()));
}

void ServerWatch::Leave() {
  {
    const std::lock_guard lock(mutex_);
    stage_ = Stage::kLeaving;
  }
  changed_.notify_all();
  if (is_chief() && goes_on_) {
    (void)client_->Insert(kOverKey, "");  // else the job has failed, which they hear as well
  }
}

}  // namespace cohort
