// When a server is lost while the job trains: what its chief does until another process is in its
// place, and has values again.
#include "parameter_server/job.h"

#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <thread>

#include <fmt/format.h>

namespace cohort::ps {
namespace {

using std::chrono::milliseconds;

// In one recovery, for servers that are lost in the middle of it, and files that cannot be read at
// the moment; between two of them there is a pause, of twice the one before.
constexpr int kMostRollBacks = 10;
constexpr milliseconds kFirstPause{100};
constexpr milliseconds kLastPause{5'000};

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

}  // namespace

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
    why = roll_.why();
  }
  return why.ok() ? why : FailJob(why);
}

// On a thread of the coordination service.
void Job::ServerLost(CoordinationServer& server, const TaskId& task, const Status& how) {
  const Status why = Unavailable(how.message());  // also where another has replaced it
  const std::optional<std::uint64_t> present = server.Incarnation(task);
  {
    const std::lock_guard lock(failure_mutex_);
    const std::uint64_t known = roll_.process(task.index);
    if (known == 0 || present == known || stage_ == Stage::kLeaving) {
      return;  // nobody knows the one that was lost, or knows it any more
    }
    if (stage_ == Stage::kTraining && rejoin_grace_.count() > 0) {
      roll_.Lost(task.index, why);
      scheduler_->ServerLost(why);
      AbortClients(why);
      return;
    }
  }
  (void)server.Fail(why);
}

// This process may have noticed before the coordination service does.
bool Job::AwaitLoss(const Status& error) {
  if (error.code() != StatusCode::kUnavailable) {
    return false;
  }
  const Deadline deadline = DeadlineAfter(heartbeat_timeout_ + kNoticed);
  for (;;) {
    {
      const std::lock_guard lock(failure_mutex_);
      if (stage_ != Stage::kTraining || !failure_.ok()) {
        return false;
      }
      if (!roll_.complete()) {
        return true;
      }
    }
    if (std::chrono::steady_clock::now() >= deadline || !coordination_->failure().ok()) {
      return false;
    }
    std::this_thread::sleep_for(milliseconds(10));
  }
}

std::string Job::NamesOfLost() const {
  const std::lock_guard lock(failure_mutex_);
  return roll_.NamesOfLost();
}

Status Job::Recover(const Status& error, const Restore& restore) {
  if (!AwaitLoss(error)) {
    return Explain(error);
  }
  Recovery recovery{.restore = restore, .begun = std::chrono::steady_clock::now()};
  std::string names = NamesOfLost();
  const std::string first = names;
  log_.Warning(fmt::format(
      "{} is lost, and the workers wait: {} goes on from {} when another process takes its place, "
      "within {:g} s",
      names, keeps() ? "it" : "the job", spec_.copies ? "the copy of its part" : "the last save",
      static_cast<double>(rejoin_grace_.count()) / 1000));
  recovery.steps_before = scheduler_->advance().steps;
  Status last = error;
  milliseconds pause = kFirstPause;
  for (int attempt = 0; attempt < kMostRollBacks; ++attempt) {
    if (attempt > 0) {
      COHORT_RETURN_IF_ERROR(PauseRecovery(pause));
      pause = std::min(2 * pause, kLastPause);
    }
    int seen = 0;
    {
      const std::lock_guard lock(failure_mutex_);
      seen = roll_.losses();
      names = attempt == 0 ? names : roll_.NamesOfLost();
    }
    COHORT_RETURN_IF_ERROR(RenewClients(recovery));
    log_.Info(fmt::format("{} there: {}", names.empty() ? "all are" : names + " is",
                          !Keeps(recovery) ? "the servers go back to the last save"
                          : spec_.copies   ? "it gets what the copy of its part has"
                                           : "it gets its part of the last save"));
    const bool kept = Keeps(recovery);
    last = BeginEpoch(&recovery);
    if (kept && !Keeps(recovery)) {
      log_.Warning(last.message());
      continue;
    }
    if (!last.ok() && IsForGood(last)) {
      return FailJob(
          last.Annotate(fmt::format("{} is lost, and {} has failed", names.empty() ? first : names,
                                    kept && spec_.copies ? "giving another process its part"
                                                         : "going back to the last save")));
    }
    if (!last.ok()) {
      log_.Warning(fmt::format("going back to the last save has failed, {} of {} times: {}",
                               attempt + 1, kMostRollBacks, last.ToString()));
      continue;
    }
    const std::optional<Status> resumed = ResumeWork(recovery, seen);
    if (!resumed.has_value()) {
      last = Unavailable("another server was lost while the servers went back to the last save");
      continue;
    }
    if (!resumed->ok()) {
      return FailJob(*resumed);
    }
    work_stands_ = Keeps(recovery);
    ReportRecovery(recovery);
    return {};
  }
  return FailJob(
      last.Annotate(fmt::format("{} is lost, and going back to the last save has failed {} times",
                                names.empty() ? first : names, kMostRollBacks)));
}

Status Job::PauseRecovery(milliseconds pause) const {
  const Deadline next = DeadlineAfter(pause);
  while (std::chrono::steady_clock::now() < next) {
    COHORT_RETURN_IF_ERROR(coordination_->failure());
    std::this_thread::sleep_for(milliseconds(10));
  }
  return {};
}

// Clients of the next epoch, as soon as there is a process for every server. Else the job fails.
Status Job::RenewClients(const Recovery& recovery) {
  if (const Status there = AwaitServers(); !there.ok()) {
    return FailJob(there);
  }
  StopRetirements();
  if (journal_ != nullptr) {
    if (const Status noted = journal_->Epoch(epoch_ + 1); !noted.ok()) {
      return FailJob(noted);
    }
  }
  MakeClients(epoch_ + 1, Keeps(recovery));
  return {};
}

// Work is handed out again, unless more servers were lost than the `seen` ones: then nothing.
std::optional<Status> Job::ResumeWork(const Recovery& recovery, int seen) {
  const std::lock_guard lock(failure_mutex_);
  if (roll_.losses() != seen) {
    return std::nullopt;
  }
  return Keeps(recovery)
             ? scheduler_->GoOn(
                   recovery.missing.parts.empty() ? std::nullopt : std::optional(recovery.step),
                   epoch_, server_addresses_)
             : scheduler_->RollBack(recovery.step, epoch_, server_addresses_);
}

void Job::ReportRecovery(const Recovery& recovery) {
  const std::int64_t step = recovery.step;
  const auto newest = static_cast<std::int64_t>(recovery.newest);
  if (Keeps(recovery) && recovery.missing.parts.empty()) {
    log_.Warning(fmt::format("all servers have what they had; the job goes on after {:.1f} s",
                             SecondsSince(recovery.begun)));
    return;
  }
  if (Keeps(recovery)) {
    const std::int64_t lost =
        std::max<std::int64_t>({newest - step, scheduler_->StepsSince(step), 0});
    lost_updates_ += lost;
    log_.Warning(fmt::format(
        "{} of {} servers go on from step {}, the others as they are: {} updates of their parts "
        "are lost; the job goes on after {:.1f} s",
        recovery.missing.parts.size(), num_servers_, step, lost, SecondsSince(recovery.begun)));
    return;
  }
  // All servers may have been lost, and with them how far they were.
  const std::int64_t undone =
      std::max(newest - step, recovery.steps_before - scheduler_->advance().steps);
  log_.Warning(fmt::format("rolled back {} steps to step {}; the job goes on after {:.1f} s",
                           std::max<std::int64_t>(undone, 0), step, SecondsSince(recovery.begun)));
}

// Until there is a process for every server; server_addresses_ are theirs then.
Status Job::AwaitServers() {
  for (int s = 0; s < num_servers_; ++s) {
    const auto begun = std::chrono::steady_clock::now();
    for (;;) {
      std::uint64_t incarnation = 0;
      const Result<std::string> address = AddressOf(s, &incarnation);
      std::unique_lock lock(failure_mutex_);
      const ServerRoll::Loss* const loss = roll_.loss(s);
      if (address.ok() && (loss == nullptr || roll_.process(s) != incarnation)) {
        roll_.Enter(s, incarnation);
        server_addresses_[static_cast<std::size_t>(s)] = *address;
        break;
      }
      COHORT_RETURN_IF_ERROR(failure_);
      // It may be lost without standing there: as soon as it was known.
      if (SecondsSince(loss != nullptr ? loss->since : begun) * 1000 >=
          static_cast<double>(rejoin_grace_.count())) {
        return NobodyCame(s, loss != nullptr ? loss->why : address.status());
      }
      lock.unlock();
      std::this_thread::sleep_for(milliseconds(20));
    }
  }
  return {};
}

Status Job::NobodyCame(int server, const Status& why) const {
  const std::string name = TaskId{TaskType::kPs, server}.ToString();
  return Unavailable(
      why.message() + "; no other process has taken its place within " +
      fmt::format("{:g}", static_cast<double>(rejoin_grace_.count()) / 1000) +
      " s (rejoin_grace) [start " + name +
      " again with its TF_CONFIG in that time; the job itself, started again, goes on from "
      "its last save]");
}

// The servers' values, and what they know of the workers that are gone, are of the new epoch.
Status Job::BeginEpoch(Recovery* recovery) {
  std::vector<std::uint64_t> retired;
  {
    const std::lock_guard lock(failure_mutex_);
    retired = gone_.Ranges();
    untold_.clear();
  }
  recovery->step = 0;
  COHORT_RETURN_IF_ERROR(client_->Declare());
  if (Keeps(*recovery)) {
    COHORT_RETURN_IF_ERROR(KeepValues(recovery, retired));
  } else {
    COHORT_ASSIGN_OR_RETURN(const std::uint64_t version, client_->Begin(retired));
    recovery->newest = std::max(recovery->newest, version);
    COHORT_ASSIGN_OR_RETURN(recovery->step, recovery->restore(nullptr));
  }
  StartRetirements();
  return {};
}

// Servers keep what they have; those that have not all of it get it from copies, or from the save.
Status Job::KeepValues(Recovery* recovery, const std::vector<std::uint64_t>& retired) {
  Missing& missing = recovery->missing;
  COHORT_ASSIGN_OR_RETURN(const Client::Kept kept, client_->BeginKeeping(retired));
  recovery->newest = std::max(recovery->newest, kept.version);
  missing.parts.insert(kept.without.begin(), kept.without.end());
  missing.copies.insert(kept.without_a_copy.begin(), kept.without_a_copy.end());
  COHORT_RETURN_IF_ERROR(Mend(&missing));
  if (missing.parts.empty()) {
    return {};  // the lost ones have, again, all that they had
  }
  if (spec_.consistency.mode != Consistency::Mode::kAsynchronous) {
    // In an epoch of their own: this one began with what servers have.
    recovery->rolls_back = true;
    std::string names;
    for (const int server : missing.parts) {
      names += (names.empty() ? "" : ", ") + TaskId{TaskType::kPs, server}.ToString();
    }
    return Unavailable("what " + names +
                       " had is lost, and the copy of it with it: under consistency " +
                       spec_.consistency.ToString() + " all servers go back to the last save");
  }
  const Lost only = {.servers = {missing.parts.begin(), missing.parts.end()},
                     .version = recovery->newest};
  COHORT_ASSIGN_OR_RETURN(recovery->step, recovery->restore(&only));
  return {};
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
      missing->parts.erase(server);
    }
  }
  for (const int server : std::set<int>(missing->copies)) {
    if (!missing->parts.contains(server)) {
      COHORT_RETURN_IF_ERROR(mend(server, Client::Mend::kCopy));
      missing->copies.erase(server);
    }
  }
  return {};
}

Status Job::FailJob(const Status& why) { return coordination_server_->Fail(why); }

}  // namespace cohort::ps
