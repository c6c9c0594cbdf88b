#include "multi_worker/worker_roll.h"

namespace cohort {

void WorkerRoll::Lost(const TaskId& worker, const Status& why) {
  const auto at = workers_.find(worker);
  if (at != workers_.end() && !at->second.loss.has_value()) {
    at->second.loss = Loss{why, std::chrono::steady_clock::now()};
  }
}

std::uint64_t WorkerRoll::process(const TaskId& worker) const {
  const auto at = workers_.find(worker);
  return at == workers_.end() ? 0 : at->second.process;
}

const WorkerRoll::Loss* WorkerRoll::loss(const TaskId& worker) const {
  const auto at = workers_.find(worker);
  return at == workers_.end() || !at->second.loss.has_value() ? nullptr : &*at->second.loss;
}

std::vector<TaskId> WorkerRoll::tasks() const {
  std::vector<TaskId> tasks;
  for (const auto& [task, worker] : workers_) {
    tasks.push_back(task);
  }
  return tasks;
}

Status WorkerRoll::why() const {
  for (const auto& [task, worker] : workers_) {
    if (worker.loss.has_value()) {
      return worker.loss->why;
    }
  }
  return {};
}

std::string WorkerRoll::NamesOfLost() const {
  std::string names;
  for (const auto& [task, worker] : workers_) {
    if (worker.loss.has_value()) {
      names += (names.empty() ? "" : ", ") + task.ToString();
    }
  }
  return names;
}

}  // namespace cohort
