// Coordinator: who is waited for, and for how long.

#include <fmt/format.h>

#include <algorithm>

#include "parameter_server/chief/coordinator.h"

namespace cohort::ps {

using std::chrono::steady_clock;

void Coordinator::Progressed(const Sender& sender, std::uint64_t steps) {
  const std::lock_guard lock(mutex_);
  workers_.Progressed(sender, steps, steady_clock::now());
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
  const std::optional<WorkerTable::Silent> silent =
      workers_.LongestSilent(Awaited(), options_.step_timeout, options_.self, now);
  if (!silent.has_value()) {
    return 0;
  }
  workers_.Moved(now);
  return LostNow(silent->task,
                 DeadlineExceeded(fmt::format(
                     "{} hangs: its process is there, and has finished no step for {:.1f} s "
                     "while others waited for it [collective_timeout is longer than a step]",
                     silent->task.ToString(), silent->seconds)));
}

Duration Coordinator::longest_piece() const {
  const std::lock_guard lock(mutex_);
  return workers_.longest_piece();
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
