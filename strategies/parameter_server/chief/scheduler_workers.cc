// Scheduler: who comes and goes, who is waited for, and for how long.

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

#include "parameter_server/chief/scheduler.h"

namespace cohort::ps {

using std::chrono::steady_clock;

void Scheduler::Excuse(const TaskId& worker) {
  const std::lock_guard lock(mutex_);
  workers_.Excuse(worker, steady_clock::now());
}

Result<std::uint64_t> Scheduler::Attach(const Sender& sender) {
  std::unique_lock lock(mutex_);
  COHORT_ASSIGN_OR_RETURN(const WorkerTable::Place place,
                          workers_.Attach(sender, view_.epoch != 0, steady_clock::now()));
  if (place.before.has_value()) {
    Welcome(sender.task, *place.before);
  }
  Leaving(place.gone);
  changed_.notify_all();
  // Also who asks again, having waited for that for too long.
  Gone(lock, place.gone, /*ends=*/true);
  return place.client;
}

void Scheduler::Welcome(const TaskId& worker, WorkerTable::Phase before) {
  using Phase = WorkerTable::Phase;
  if (before == Phase::kAttached) {
    Release(worker, Aborted("another process has taken its place"));
  }
  if (before != Phase::kExpected) {
    options_.log.Info(worker.ToString() + (before == Phase::kExcused ? " has come" : " is back"));
  }
  if (before == Phase::kDone || before == Phase::kLost) {
    NoteEnd(worker, std::nullopt);
  }
}

Status Scheduler::Done(const Sender& sender) {
  std::unique_lock lock(mutex_);
  COHORT_RETURN_IF_ERROR(workers_.Check(sender));
  workers_.Leave(sender.task);
  NoteEnd(sender.task, JournalState::End::kDone);
  Release(sender.task, Aborted("it has left"));
  const std::uint64_t gone = Leaving(workers_.client(sender.task));
  changed_.notify_all();
  Gone(lock, gone, /*ends=*/true);
  return {};
}

void Scheduler::Lost(const TaskId& task, const Status& why) {
  std::unique_lock lock(mutex_);
  const std::uint64_t gone = LostNow(task, why);
  Gone(lock, gone, /*ends=*/true);  // also of one that had no client
}

std::uint64_t Scheduler::LostNow(const TaskId& task, const Status& why) {
  if (!workers_.Lose(task, why, steady_clock::now())) {
    return 0;
  }
  options_.log.Warning("the job goes on without " + task.ToString() + ": " + why.message());
  NoteEnd(task, JournalState::End::kLost);
  Release(task, why);
  changed_.notify_all();
  return Leaving(workers_.client(task));
}

void Scheduler::Release(const TaskId& worker, const Status& why) {
  for (auto& [key, epoch] : epochs_) {
    if (epoch.splits.has_value()) {
      epoch.splits->Lost(worker);
    }
  }
  if (rounds_.has_value()) {
    rounds_->Leave(worker);
  }
  if (closures_.has_value()) {
    closures_->Lost(worker, why);
  }
}

// Whether another chief would have to wait for the worker.
void Scheduler::NoteEnd(const TaskId& worker, std::optional<JournalState::End> end) {
  if (options_.journal != nullptr && journal_failure_.ok()) {
    noted_ends_ = options_.journal->Worker(worker, end);
  }
}

// Until the disk has the ends that were noted; that it cannot, WaitOver says.
void Scheduler::AwaitEnds(std::unique_lock<std::mutex>& lock) {
  Journal* const journal = options_.journal;
  while (journal != nullptr && journal_failure_.ok() && !journal->has(noted_ends_)) {
    const Journal::Ticket ticket = noted_ends_;
    lock.unlock();
    Status status = journal->Await(ticket);
    lock.lock();
    if (!status.ok() && journal_failure_.ok()) {
      journal_failure_ = std::move(status);
    }
  }
}

std::uint64_t Scheduler::Leaving(std::uint64_t client) {
  leaving_ += client != 0 ? 1 : 0;
  return client;
}

void Scheduler::Gone(std::unique_lock<std::mutex>& lock, std::uint64_t client, bool ends) {
  if (client == 0 && !ends) {
    lock.unlock();
    return;
  }
  const auto told = [this, client] {
    if (client == 0) {
      return;
    }
    {
      const std::lock_guard again(mutex_);
      --leaving_;
    }
    changed_.notify_all();
  };
  try {
    AwaitEnds(lock);
    lock.unlock();
    if (client != 0 && options_.on_gone) {
      options_.on_gone(client);
    }
  } catch (...) {  // for want of memory; saves are not put off for ever
    if (lock.owns_lock()) {
      lock.unlock();
    }
    told();
    throw;
  }
  told();
}

bool Scheduler::WorkersHaveLeft() const {
  const std::lock_guard lock(mutex_);
  return workers_.HaveLeft() && (options_.journal == nullptr || !journal_failure_.ok() ||
                                 options_.journal->has(noted_ends_));
}

Result<bool> Scheduler::WaitOver(Duration wait) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, DeadlineAfter(wait), [this] {
    return recovering_ || (CutIsDue() && !cut_told_) || workers_.Over(steady_clock::now());
  });
  if (workers_.Over(steady_clock::now())) {
    AwaitEnds(lock);
  }
  cut_told_ = CutIsDue();
  COHORT_RETURN_IF_ERROR(server_loss_);
  COHORT_RETURN_IF_ERROR(journal_failure_);
  if (workers_.Over(steady_clock::now())) {
    const bool left = std::any_of(again_.begin(), again_.end(),
                                  [this](const auto& due) { return !IsOver(due.first); }) ||
                      (closures_.has_value() && closures_->owed() > 0);
    if (left) {
      return Unavailable(
          "the servers were rolled back when the workers had ended, and nobody is left to train "
          "the steps since again [restart the job, which goes on from its last save]");
    }
    if (closures_.has_value() && closures_->lacks()) {
      // Nobody else asks any more. It is for good, where a loss ended its attempts, too.
      const Status error = closures_->TakeError();
      const bool of_a_loss =
          error.code() == StatusCode::kUnavailable || error.code() == StatusCode::kAborted;
      return of_a_loss ? Internal(error.message()) : error;
    }
    return true;
  }
  COHORT_RETURN_IF_ERROR(workers_.CheckLonely(steady_clock::now()));
  return false;
}

void Scheduler::Progressed(const Sender& sender, std::uint64_t steps) {
  const std::lock_guard lock(mutex_);
  workers_.Progressed(sender, steps, steady_clock::now());
}

std::vector<TaskId> Scheduler::Awaited() const {
  std::vector<TaskId> awaited;
  if (rounds_.has_value()) {
    awaited = rounds_->awaited();
  }
  for (const auto& [key, epoch] : epochs_) {
    if (epoch.splits.has_value()) {
      const std::vector<TaskId> holders = epoch.splits->holders();
      awaited.insert(awaited.end(), holders.begin(), holders.end());
    }
  }
  return awaited;
}

// One at a time, the one that has been silent longest: others may have waited for it. Before its
// first piece of work a worker has the time that the job waits for workers.
std::uint64_t Scheduler::GiveUpHanging() {
  if (options_.step_timeout.count() <= 0 || recovering_) {
    return 0;
  }
  const auto now = steady_clock::now();
  const std::optional<WorkerTable::Silent> silent =
      workers_.LongestSilent(Awaited(), options_.step_timeout, options_.self, now);
  if (!silent.has_value()) {
    return 0;
  }
  workers_.Moved(now);
  return LostNow(silent->task,
                 DeadlineExceeded(fmt::format(
                     "{} hangs: its process is there, and has finished no step for {:.1f} s "
                     "while others waited for it [communication.timeout is longer than a step]",
                     silent->task.ToString(), silent->seconds)));
}

Duration Scheduler::longest_piece() const {
  const std::lock_guard lock(mutex_);
  return workers_.longest_piece();
}

std::size_t Scheduler::workers() const {
  const std::lock_guard lock(mutex_);
  return workers_.attached();
}

std::string Scheduler::AtWork() const {
  const std::lock_guard lock(mutex_);
  std::string names;
  for (const TaskId& task : Awaited()) {
    names += (names.empty() ? "" : ", ") + task.ToString();
  }
  return names.empty() && leaving_ > 0 ? "the disk of the journal" : names;
}

}  // namespace cohort::ps
