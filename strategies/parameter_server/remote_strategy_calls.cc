// RemoteStrategy where the chief calls functions: in the chief, saves and lost servers beside its
// waits for calls; in a worker, calls whose servers go back.
#include <algorithm>
#include <utility>

#include "parameter_server/chief/caught.h"
#include "parameter_server/chief/remote_functions.h"
#include "parameter_server/remote_strategy.h"

namespace cohort {

Result<std::unique_ptr<Coordinator>> RemoteStrategy::MakeCoordinator(const ScheduleOptions& asked) {
  if (!is_chief() || trains() || options_.consistency.synchronous()) {
    return FailedPrecondition(
        cluster().task.ToString() +
        (options_.consistency.synchronous()
             ? ": functions train apart from each other, and application is synchronous [apply "
               "asynchronously]"
             : " cannot call functions: a chief that does not train does [cohort launch -n 2 --ps "
               "1 --chief -- PROGRAM]"));
  }
  Require(client_ != nullptr, "Bind before Coordinator::Create");
  ScheduleOptions options = asked;
  if (!goes_back()) {
    options.max_kept_calls = 0;
  }
  const auto recover = [this](const Status& why, Deadline deadline) {
    const std::uint64_t seen = recoveries_;
    return job_->scheduler()->recovering() ? GoOnAfter(why, seen, deadline) : OkStatus();
  };
  COHORT_ASSIGN_OR_RETURN(
      auto coordinator,
      ps::OpenFunctions(*job_->scheduler(), options, recover,
                        [this](const Coordinator::SaveFn& save, Deadline deadline) {
                          return SaveCalls(save, deadline);
                        }));
  functions_ = true;
  COHORT_RETURN_IF_ERROR(OpenData());
  job_->BeginTraining();
  return coordinator;
}

// Is it possible that all servers go back?
bool RemoteStrategy::goes_back() const {
  const bool of_copies =
      options_.server_loss == ServerLoss::kReplica && options_.consistency.bounded();
  return options_.rejoin_grace.count() > 0 &&
         (options_.server_loss == ServerLoss::kRollBack || of_copies);
}

Status RemoteStrategy::NotWhileItSaves(const char* what) const {
  return saves_here() ? FailedPrecondition(std::string(what) +
                                           " in the function that Coordinator::Save was given, "
                                           "which has the snapshot, and no more [PullState and "
                                           "SaveTable there, the rest when Save has returned]")
                      : OkStatus();
}

// In the chief, to bring servers back, to save, or to read what neither changes meanwhile.
Result<std::unique_lock<std::timed_mutex>> RemoteStrategy::LockRecovery(const char* what,
                                                                        Deadline deadline) {
  COHORT_RETURN_IF_ERROR(NotWhileItSaves(what));
  if (restores_here()) {
    return FailedPrecondition(
        std::string(what) +
        " in SavePlan::restore, which gives the servers what they go back to, "
        "and no more [the rest when it has returned]");
  }
  for (;;) {
    const Deadline look = DeadlineAfter(std::chrono::milliseconds(200));  // has the job failed?
    std::unique_lock lock(recovery_mutex_, std::min(deadline, look));
    if (lock.owns_lock()) {
      return lock;
    }
    COHORT_RETURN_IF_ERROR(job_->scheduler()->failure());
    if (std::chrono::steady_clock::now() >= deadline) {
      return DeadlineExceeded(
          std::string(what) +
          " at its deadline: another thread saves, or waits for a server that was lost");
    }
  }
}

Status RemoteStrategy::SaveCalls(const Coordinator::SaveFn& save, Deadline deadline) {
  const auto guarded = [&save](std::int64_t calls) {
    return ps::CaughtAsStatus([&] { return save(calls); });
  };
  for (;;) {
    COHORT_ASSIGN_OR_RETURN(const auto lock, LockRecovery("Save", deadline));
    std::optional<Status> outcome;
    saver_ = std::this_thread::get_id();
    const Status status = saves_.SaveCalls(guarded, deadline, &outcome);
    saver_ = std::thread::id();
    if (status.ok()) {
      return *outcome;
    }
    COHORT_RETURN_IF_ERROR(GoOn(status));
    ++recoveries_;
    if (outcome.has_value() && outcome->ok()) {
      return {};  // it is whole, though a server was lost before all had forgotten the snapshot
    }
  }
}

// With what all calls did that had returned, also where servers have gone back since.
Status RemoteStrategy::SurvivingCalls(const char* what, const std::function<Status()>& fn) {
  COHORT_RETURN_IF_ERROR(NotWhileItSaves(what));
  ps::Scheduler& scheduler = *job_->scheduler();
  for (;;) {
    if (scheduler.calls_again() > 0) {
      COHORT_RETURN_IF_ERROR(
          scheduler.AwaitCallsAgain(DeadlineAfter(options_.communication.timeout)));
    }
    COHORT_ASSIGN_OR_RETURN(const auto lock,
                            LockRecovery(what, DeadlineAfter(options_.communication.timeout)));
    if (scheduler.calls_again() > 0) {
      continue;  // another thread has brought the servers back meanwhile
    }
    const Status status = fn();
    if (status.ok()) {
      return {};
    }
    COHORT_RETURN_IF_ERROR(GoOn(status));
    ++recoveries_;
  }
}

Status RemoteStrategy::RecoverCalls(const Status& error, std::uint64_t seen) {
  COHORT_RETURN_IF_ERROR(GoOnAfter(error, seen, DeadlineAfter(options_.communication.timeout)));
  return MatchRows();
}

// Rows are looked up as they are now: the values beside them must not be older than what the
// servers have gone back to since.
Status RemoteStrategy::MatchRows() {
  COHORT_RETURN_IF_ERROR(NotWhileItSaves("Evaluate"));
  if (rows_ == nullptr || refreshed_after_ == restores_) {
    return {};
  }
  return SurvivingCalls("Evaluate", [this] { return Refresh(/*everything=*/true); });
}

// What the program gives to the servers no call makes again: calls that run again come before it.
// Values that were pulled before the servers went back are of another state, and going back has
// written over them.
Status RemoteStrategy::PushBetweenCalls() {
  COHORT_RETURN_IF_ERROR(NotWhileItSaves("PushState"));
  bool stale = pulled_after_ != restores_;
  const auto push = [this, &stale]() -> Status {
    stale = pulled_after_ != restores_;
    if (stale) {
      return {};
    }
    const Status status = AssignState();
    if (status.code() != StatusCode::kUnavailable) {
      saves_.Given(step_);
    }
    return status;
  };
  if (!stale) {
    COHORT_RETURN_IF_ERROR(job_->Explain(SurvivingCalls("PushState", push)));
  }
  return stale ? Aborted(
                     "PushState: servers have gone back to a save since the last PullState, so it "
                     "was not made, or not by all of them [PullState, which waits for the calls "
                     "that run again; then change that, and push it]")
               : OkStatus();
}

Status RemoteStrategy::LoadTable(int table, FileSystem& files,
                                 const std::vector<std::string>& chain) {
  bool sent = false;
  const auto load = [&] {
    return saves_.LoadTable(table, files, chain, /*before_training=*/!began_ && !functions_, &sent);
  };
  if (!is_chief() || !functions_ || restores_here()) {
    return load();
  }
  return SurvivingCalls("LoadTable", [&] {
    sent = false;
    const Status status = load();
    if (sent && status.code() != StatusCode::kUnavailable) {
      saves_.Given(step_);
    }
    return status;
  });
}

Status RemoteStrategy::ServeFunctions(const Functions& functions) {
  if (!trains() || is_chief() || options_.consistency.synchronous()) {
    return FailedPrecondition(
        cluster().task.ToString() +
        " runs no functions: workers of an asynchronous job with a chief do [cohort launch -n 2 "
        "--ps 1 --chief -- PROGRAM]");
  }
  Require(client_ != nullptr, "Bind before ServeFunctions");
  functions_ = true;
  job_->NeedChief();
  const ps::CallHooks hooks = {.idle = [this]() -> Status {
                                 for (Status status = Idle(); !status.ok(); status = Idle()) {
                                   COHORT_RETURN_IF_ERROR(GoOn(status));
                                 }
                                 return {};
                               },
                               .begin = [this](std::uint64_t epoch) { return BeginCall(epoch); }};
  const Status status = job_->Explain(ps::RunFunctions(
      *job_->scheduler_client(), functions,
      {.index = job_->rank(), .count = static_cast<int>(job_->workers().size())}, hooks));
  if (!status.ok() && job_->LostChief()) {
    return {status.code(), status.message() +
                               " [a chief that calls functions is not replaced: restart the job, "
                               "which goes on from its last Coordinator::Save]"};
  }
  return status;
}

// Of a call that was handed out in that epoch of the servers: does it count? This process may not
// know of the epoch yet, or of a later one that undoes what was handed out before it.
Result<bool> RemoteStrategy::BeginCall(std::uint64_t epoch) {
  while (epoch > job_->epoch()) {
    COHORT_RETURN_IF_ERROR(GoOn(Unavailable("the servers are in another epoch")));
  }
  void_ = job_->rolled_back() > epoch;
  return !void_;
}

}  // namespace cohort
