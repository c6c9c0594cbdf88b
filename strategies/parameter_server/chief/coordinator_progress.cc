// Coordinator: who is waited for, and for how long.

#include <fmt/format.h>

#include <algorithm>

#include "parameter_server/chief/coordinator.h"

namespace cohort::ps {

using std::chrono::steady_clock;

void Coordinator::Progressed(const Sender& sender, std::uint64_t steps) {
  const std::lock_guard lock(mutex_);
  const auto worker = workers_.find(sender.task);
  if (worker != workers_.end() && worker->second.incarnation == sender.incarnation &&
      worker->second.steps != steps) {
    worker->second.steps = steps;
    worker->second.moved = steady_clock::now();
  }
}

void Coordinator::Moved() {
  for (auto& [task, worker] : workers_) {
    worker.moved = steady_clock::now();
  }
}

void Coordinator::Got(const TaskId& worker, const EpochKey& epoch, std::int64_t piece) {
  Worker& by = workers_.at(worker);
  if (by.piece != std::pair(epoch, piece)) {  // else it asks again
    by.piece = {epoch, piece};
    by.since = steady_clock::now();
  }
}

void Coordinator::Finished(const TaskId& worker) {
  if (const Worker& by = workers_.at(worker); by.since != steady_clock::time_point()) {
    longest_piece_ = std::max<Duration>(longest_piece_, steady_clock::now() - by.since);
  }
}

std::vector<TaskId> Coordinator::Awaited() const {
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
std::uint64_t Coordinator::GiveUpHanging() {
  if (options_.step_timeout.count() <= 0 || recovering_) {
    return 0;
  }
  const auto now = steady_clock::now();
  const Worker* longest = nullptr;
  TaskId task;
  for (const TaskId& awaited : Awaited()) {
    const Worker& worker = workers_.at(awaited);
    const bool began = worker.since != steady_clock::time_point();
    if (worker.phase == Phase::kAttached && awaited != options_.self &&
        now - worker.moved >= (began ? options_.step_timeout : options_.rejoin_timeout) &&
        (longest == nullptr || worker.moved < longest->moved)) {
      longest = &worker;
      task = awaited;
    }
  }
  if (longest == nullptr) {
    return 0;
  }
  const double seconds = std::chrono::duration<double>(now - longest->moved).count();
  Moved();
  return LostNow(task, DeadlineExceeded(fmt::format(
                           "{} hangs: its process is there, and has finished no step for {:.1f} s "
                           "while others waited for it [collective_timeout is longer than a step]",
                           task.ToString(), seconds)));
}

Duration Coordinator::longest_piece() const {
  const std::lock_guard lock(mutex_);
  return longest_piece_;
}

std::string Coordinator::AtWork() const {
  const std::lock_guard lock(mutex_);
  std::string names;
  for (const TaskId& task : Awaited()) {
    names += (names.empty() ? "" : ", ") + task.ToString();
  }
  return names;
}

}  // namespace cohort::ps
