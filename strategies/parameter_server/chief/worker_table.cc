#include "parameter_server/chief/worker_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>

namespace cohort::ps {

WorkerTable::WorkerTable(std::span<const TaskId> workers, std::uint64_t first_client,
                         std::chrono::milliseconds rejoin_timeout, Time now)
    : rejoin_timeout_(rejoin_timeout), next_client_(first_client) {
  for (const TaskId& worker : workers) {
    workers_[worker].moved = now;
  }
}

std::vector<TaskId> WorkerTable::Succeed(const std::map<TaskId, JournalState::End>& ended,
                                         Time now) {
  succeeds_ = true;
  excused_until_ = now + rejoin_timeout_;
  std::vector<TaskId> back;
  for (const auto& [task, end] : ended) {
    const auto worker = workers_.find(task);
    if (worker != workers_.end() && worker->second.phase == Phase::kExpected) {
      const bool lost = end == JournalState::End::kLost;
      worker->second.phase = lost ? Phase::kLost : Phase::kDone;
      if (lost) {
        worker->second.end = last_loss_ =
            Aborted(task.ToString() + " was lost before the chief was");
      }
    } else if (worker != workers_.end() && worker->second.phase == Phase::kAttached) {
      back.push_back(task);
    }
  }
  StartLoneliness(now);
  return back;
}

void WorkerTable::Excuse(const TaskId& worker, Time now) {
  if (Worker& excused = workers_.at(worker); excused.phase == Phase::kExpected) {
    excused.phase = Phase::kExcused;
    StartLoneliness(now);
  }
}

void WorkerTable::StartLoneliness(Time now) {
  if (std::all_of(workers_.begin(), workers_.end(), [](const auto& w) {
        return w.second.phase == Phase::kLost || w.second.phase == Phase::kExcused;
      })) {
    lonely_since_ = now;
  }
}

Result<WorkerTable::Place> WorkerTable::Attach(const Sender& sender, bool servers_are_known,
                                               Time now) {
  const auto found = workers_.find(sender.task);
  if (found == workers_.end()) {
    return FailedPrecondition(sender.task.ToString() + " is not a worker of this job");
  }
  Worker& worker = found->second;
  if (sender.epoch > 0 && worker.incarnation == 0) {
    if (servers_are_known) {
      COHORT_RETURN_IF_ERROR(CheckStranger(sender.task));
    }
    stranger_ = sender.task;  // if it is one, the servers' epoch will tell
  }
  Place place;
  if (worker.incarnation != sender.incarnation) {
    place.before = worker.phase;
    place.gone = worker.client;
    worker = {.phase = Phase::kAttached,
              .incarnation = sender.incarnation,
              .client = next_client_ == 0 ? ++next_client_ : next_client_,
              .moved = now};
    ++next_client_;
  }
  place.client = worker.client;
  lonely_since_.reset();
  return place;
}

Status WorkerTable::CheckStranger() const {
  return stranger_.has_value() ? CheckStranger(*stranger_) : OkStatus();
}

// What a worker has done of an earlier chief's job, this one cannot know without its journal.
Status WorkerTable::CheckStranger(const TaskId& worker) const {
  return succeeds_
             ? OkStatus()
             : FailedPrecondition(
                   worker.ToString() +
                   " comes from a job whose chief and servers are gone [restart the job, workers "
                   "too, which goes on from its last save]");
}

Status WorkerTable::Check(const Sender& sender) const {
  const auto worker = workers_.find(sender.task);
  if (worker == workers_.end() || worker->second.incarnation != sender.incarnation) {
    return Aborted(sender.task.ToString() + ": another process has taken this task's place");
  }
  if (worker->second.phase == Phase::kLost) {
    return Aborted(sender.task.ToString() + " was given up as lost, its data went to others (" +
                   worker->second.end.message() + ") [start it again to join anew]");
  }
  return {};
}

void WorkerTable::Leave(const TaskId& worker) { workers_.at(worker).phase = Phase::kDone; }

bool WorkerTable::Lose(const TaskId& worker, const Status& why, Time now) {
  const auto found = workers_.find(worker);
  if (found == workers_.end() || found->second.phase == Phase::kDone ||
      found->second.phase == Phase::kLost) {
    return false;
  }
  found->second.phase = Phase::kLost;
  found->second.end = why;
  last_loss_ = why;
  StartLoneliness(now);
  return true;
}

void WorkerTable::Progressed(const Sender& sender, std::uint64_t steps, Time now) {
  const auto worker = workers_.find(sender.task);
  if (worker != workers_.end() && worker->second.incarnation == sender.incarnation &&
      worker->second.steps != steps) {
    worker->second.steps = steps;
    worker->second.moved = now;
  }
}

void WorkerTable::Asked(const TaskId& worker, Time now) { workers_.at(worker).moved = now; }

void WorkerTable::Moved(Time now) {
  for (auto& [task, worker] : workers_) {
    worker.moved = now;
  }
}

std::optional<WorkerTable::Silent> WorkerTable::LongestSilent(
    std::span<const TaskId> awaited, std::chrono::milliseconds step_timeout,
    const std::optional<TaskId>& self, Time now) const {
  const Worker* longest = nullptr;
  TaskId task;
  for (const TaskId& one : awaited) {
    const Worker& worker = workers_.at(one);
    const bool began = worker.since != Time();
    if (worker.phase == Phase::kAttached && one != self &&
        now - worker.moved >= (began ? step_timeout : rejoin_timeout_) &&
        (longest == nullptr || worker.moved < longest->moved)) {
      longest = &worker;
      task = one;
    }
  }
  if (longest == nullptr) {
    return std::nullopt;
  }
  return Silent{.task = task,
                .seconds = std::chrono::duration<double>(now - longest->moved).count()};
}

void WorkerTable::Got(const TaskId& worker, const EpochKey& epoch, std::int64_t piece, Time now) {
  Worker& by = workers_.at(worker);
  if (by.piece != std::pair(epoch, piece)) {  // else it asks again
    by.piece = {epoch, piece};
    by.since = now;
  }
}

void WorkerTable::Finished(const TaskId& worker, Time now) {
  if (const Worker& by = workers_.at(worker); by.since != Time()) {
    longest_piece_ = std::max<Duration>(longest_piece_, now - by.since);
  }
}

std::size_t WorkerTable::attached() const {
  return static_cast<std::size_t>(std::ranges::count_if(
      workers_, [](const auto& w) { return w.second.phase == Phase::kAttached; }));
}

std::set<TaskId> WorkerTable::Expected() const {
  std::set<TaskId> expected;
  for (const auto& [task, worker] : workers_) {
    if (worker.phase == Phase::kExpected || worker.phase == Phase::kAttached) {
      expected.insert(task);
    }
  }
  return expected;
}

bool WorkerTable::HaveLeft() const {
  return std::ranges::all_of(workers_, [](const auto& worker) {
    return worker.second.phase == Phase::kDone || worker.second.phase == Phase::kLost;
  });
}

bool WorkerTable::Over(Time now) const {
  bool any_done = false;
  const bool others_may_come = succeeds_ && now < excused_until_;
  for (const auto& [task, worker] : workers_) {
    if (worker.phase == Phase::kExpected || worker.phase == Phase::kAttached ||
        (worker.phase == Phase::kExcused && others_may_come)) {
      return false;
    }
    any_done = any_done || worker.phase == Phase::kDone;
  }
  return any_done;
}

Status WorkerTable::CheckLonely(Time now) const {
  if (!lonely_since_.has_value() || now - *lonely_since_ <= rejoin_timeout_) {
    return {};
  }
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(rejoin_timeout_).count();
  if (last_loss_.ok()) {
    std::string names;
    for (const auto& [task, worker] : workers_) {
      names += (names.empty() ? "" : ", ") + task.ToString();
    }
    return Unavailable(
        fmt::format("no worker has come for {} s: not {} [start one of them]", seconds, names));
  }
  return Unavailable(
      fmt::format("no worker is left, and none has come back for {} s; the last: {} [start a "
                  "worker again]",
                  seconds, last_loss_.message()));
}

}  // namespace cohort::ps
