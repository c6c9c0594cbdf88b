// The functions of a job: Scheduler's part that the chief's program and its workers meet at.

#include <algorithm>

#include "parameter_server/chief/scheduler.h"

namespace cohort::ps {

Status Scheduler::OpenFunctions(int max_attempts, int in_flight, Recover recover,
                                ClosureMemory memory) {
  {
    const std::lock_guard lock(mutex_);
    if (closures_.has_value()) {
      return FailedPrecondition("this job has, or had, a coordinator [Create one, once]");
    }
    if (rounds_.has_value()) {
      return FailedPrecondition("data is being handed out already [Create before Serve]");
    }
    closures_.emplace(max_attempts, in_flight, options_.log, memory);
    recover_ = std::move(recover);
  }
  changed_.notify_all();
  return {};
}

void Scheduler::CloseFunctions() {
  {
    const std::lock_guard lock(mutex_);
    if (closures_closed_ || !closures_.has_value()) {
      return;
    }
    closures_closed_ = true;
    closures_->Cancel(Cancelled("the coordinator was closed"));
  }
  changed_.notify_all();
}

void Scheduler::Fail(const Status& why) {
  {
    const std::lock_guard lock(mutex_);
    if (failure_.ok()) {
      failure_ = why;
    }
  }
  changed_.notify_all();
}

Status Scheduler::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

// Until `ready`; else what ended the job, or DeadlineExceeded of `what`.
template <typename Ready>
Status Scheduler::Await(std::unique_lock<std::mutex>& lock, Deadline deadline, const char* what,
                        const Ready& ready, bool recovers) {
  Require(closures_.has_value(), "functions are open");
  for (;;) {
    if (recovers && !server_loss_.ok() && failure_.ok() && recover_) {
      const Status why = server_loss_;
      lock.unlock();
      Status well = recover_(why, deadline);
      lock.lock();
      COHORT_RETURN_IF_ERROR(well);
      continue;
    }
    if (ready()) {
      return {};
    }
    COHORT_RETURN_IF_ERROR(failure_);
    COHORT_RETURN_IF_ERROR(workers_.CheckLonely(std::chrono::steady_clock::now()));
    if (stopped_) {
      return Cancelled(std::string(what) + ": this process has left the job");
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      return DeadlineExceeded(
          std::string(what) + " at its deadline: " + closures_->Describe() +
          (leaving_ > 0 ? "; a worker is gone, which the journal has still to note" : ""));
    }
    const Deadline look = DeadlineAfter(std::chrono::milliseconds(200));  // is there a worker?
    changed_.wait_until(lock, std::min(deadline, look));
  }
}

Result<std::shared_ptr<RemoteResult>> Scheduler::Schedule(std::string function,
                                                          std::string argument,
                                                          std::vector<PerWorkerDataset> data,
                                                          std::size_t max_waiting,
                                                          Deadline deadline) {
  std::shared_ptr<RemoteResult> result;
  {
    std::unique_lock lock(mutex_);
    COHORT_RETURN_IF_ERROR(failure_);
    COHORT_RETURN_IF_ERROR(Await(lock, deadline, "Schedule", [&] {
      return closures_->error().ok() ? closures_->waiting() < max_waiting
                                     : closures_->running() == 0;
    }));
    COHORT_RETURN_IF_ERROR(closures_->TakeError());
    if (closures_closed_) {
      return FailedPrecondition("Schedule after Close");
    }
    result = closures_->Add(std::move(function), std::move(argument), std::move(data));
  }
  changed_.notify_all();
  return result;
}

Status Scheduler::Join(Deadline deadline) {
  std::unique_lock lock(mutex_);
  COHORT_RETURN_IF_ERROR(Await(lock, deadline, "Join", [this] { return closures_->idle(); }));
  return closures_->TakeError();
}

bool Scheduler::Idle() const {
  const std::lock_guard lock(mutex_);
  return !closures_.has_value() || closures_->idle();
}

Result<std::string> Scheduler::Fetch(const RemoteResult& result, Deadline deadline) {
  std::unique_lock lock(mutex_);
  COHORT_RETURN_IF_ERROR(Await(lock, deadline, "Fetch", [&] {
    return result.over &&
           (result.error.ok() || closures_->error().ok() || closures_->running() == 0);
  }));
  if (result.error.ok()) {
    return result.value;
  }
  COHORT_RETURN_IF_ERROR(closures_->TakeError());
  return result.error;
}

Result<std::optional<std::int64_t>> Scheduler::BeginCallCut(Deadline deadline) {
  std::unique_lock lock(mutex_);
  Require(closures_.has_value(), "functions are open");
  closures_->HoldBack(true);
  changed_.notify_all();  // what was returned is taken at once
  Status status = Await(
      lock, deadline, "Save",
      [this] {
        return recovering_ || (closures_->error().ok() ? closures_->at_rest() && leaving_ == 0
                                                       : closures_->running() == 0);
      },
      /*recovers=*/false);
  if (status.ok() && !recovering_) {
    status = closures_->TakeError();
    if (status.ok() && closures_closed_) {  // what ran then was not awaited
      status = FailedPrecondition("Save after Close");
    }
    if (status.ok()) {
      return std::optional(closures_->begun());
    }
  }
  closures_->HoldBack(false);
  changed_.notify_all();
  COHORT_RETURN_IF_ERROR(status);
  return std::optional<std::int64_t>();
}

void Scheduler::EndCallCut() {
  {
    const std::lock_guard lock(mutex_);
    closures_->HoldBack(false);
  }
  changed_.notify_all();
}

Status Scheduler::AwaitCallsAgain(Deadline deadline) {
  std::unique_lock lock(mutex_);
  return Await(lock, deadline, "the wait for calls that run again, since the servers went back,",
               [this] { return closures_->owed() == 0; });
}

std::size_t Scheduler::calls_again() const {
  const std::lock_guard lock(mutex_);
  return closures_.has_value() ? closures_->owed() : 0;
}

// Once between two saves, where some calls are remembered.
void Scheduler::WarnOfForgotten() {
  if (forgotten_told_ || !closures_->remembers() || courses_.empty() ||
      closures_->CanRollBack(courses_.back().calls)) {
    return;
  }
  forgotten_told_ = true;
  options_.log.Warning(
      "more calls have returned since the last save than are remembered: until the next one the "
      "loss of a server ends the job [Coordinator::Save more often, or raise "
      "ScheduleOptions::max_kept_calls and max_kept_bytes]");
}

Result<ClosureReply> Scheduler::NextClosure(const Sender& sender, std::span<const std::int64_t> has,
                                            Duration wait) {
  const Deadline deadline = DeadlineAfter(wait);
  std::unique_lock lock(mutex_);
  for (;;) {
    COHORT_RETURN_IF_ERROR(workers_.Check(sender));
    // While a server is away calls would fail, and those that are over may have to run again.
    if (recovering_) {
      if (!Pause(lock, deadline)) {
        return ClosureReply{};
      }
      continue;
    }
    if (closures_closed_ && closures_->owed() == 0) {
      return ClosureReply{.progress = Progress::kOver};
    }
    if (closures_.has_value()) {
      // So many calls are left for workers that have none.
      const std::size_t others = workers_.attached() - 1;
      if (const Closure* closure = closures_->Next(sender.task, has, others)) {
        ClosureReply reply{.progress = Progress::kGo, .closure = *closure};
        reply.closure.epoch = view_.epoch;
        return reply;
      }
    } else if (rounds_.has_value()) {
      return FailedPrecondition(
          "the chief hands out data and has no functions to call [Coordinator::Create there]");
    }
    if (!Pause(lock, deadline)) {
      return ClosureReply{};
    }
  }
}

Status Scheduler::FinishClosure(const Sender& sender, std::int64_t id,
                                Result<std::string> outcome) {
  {
    const std::lock_guard lock(mutex_);
    COHORT_RETURN_IF_ERROR(workers_.Check(sender));
    if (closures_.has_value()) {
      closures_->Finish(sender.task, id, std::move(outcome));
      WarnOfForgotten();
    }
  }
  changed_.notify_all();
  return {};
}

}  // namespace cohort::ps
