#include "barrier_table.h"

#include <fmt/format.h>

#include <algorithm>

namespace cohort {

std::string TaskNames(const std::vector<TaskId>& tasks) {
  constexpr std::size_t kNamed = 8;
  std::string names;
  for (std::size_t i = 0; i < std::min(tasks.size(), kNamed); ++i) {
    names += (i == 0 ? "" : ", ") + tasks[i].ToString();
  }
  if (tasks.size() > kNamed) {
    names += fmt::format(" and {} more", tasks.size() - kNamed);
  }
  return names;
}

bool BarrierTable::Barrier::HasArrived(const TaskId& task) const {
  return std::find(arrived.begin(), arrived.end(), task) != arrived.end();
}

std::vector<TaskId> BarrierTable::Barrier::Missing() const {
  std::vector<TaskId> missing;
  std::copy_if(participants.begin(), participants.end(), std::back_inserter(missing),
               [this](const TaskId& task) { return !HasArrived(task); });
  return missing;
}

void BarrierTable::Arrive(const Call& call, Done done, Completions& completions) {
  const auto [entry, created] = barriers_.try_emplace(call.name);
  Barrier& barrier = entry->second;
  if (created) {
    open_.insert(call.name);
    barrier.participants = call.participants;
    barrier.everyone = call.everyone;
    barrier.begun = call.now;
  }
  if (barrier.result) {
    completions.Add([done = std::move(done), result = *barrier.result] { done(result); });
    return;
  }
  barrier.waiting.Add(call.deadline, std::move(done));
  barrier.deadline = std::min(barrier.deadline, call.deadline);
  const auto names = [](const std::set<TaskId>& tasks, bool everyone) {
    return everyone ? std::string("all tasks")
                    : TaskNames(std::vector<TaskId>(tasks.begin(), tasks.end()));
  };
  if (barrier.everyone != call.everyone ||
      (!call.everyone && barrier.participants != call.participants)) {
    return Finish(
        call.name, barrier,
        InvalidArgument(fmt::format(
            "{} calls it for {}, but {} began it for {} [every participant must name "
            "the same ones]",
            call.task.ToString(), names(call.participants, call.everyone),
            barrier.arrived.front().ToString(), names(barrier.participants, barrier.everyone))),
        completions);
  }
  if (call.everyone) {
    barrier.participants.insert(call.task);  // one that was given up and has come back
  }
  if (!barrier.participants.contains(call.task)) {
    return Finish(call.name, barrier,
                  InvalidArgument(fmt::format("{} calls it but is not among its participants: {}",
                                              call.task.ToString(),
                                              names(barrier.participants, barrier.everyone))),
                  completions);
  }
  if (!barrier.HasArrived(call.task)) {
    barrier.arrived.push_back(call.task);
  }
  PassIfComplete(call.name, barrier, completions);
}

void BarrierTable::Finish(const std::string& name, Barrier& barrier, const Status& result,
                          Completions& completions) {
  barrier.result = result.Annotate("barrier \"" + name + "\"");
  barrier.waiting.FinishAll(*barrier.result, completions);
  open_.erase(name);
  // Only the name and the result are ever asked for again.
  barrier.participants.clear();
  barrier.arrived = {};
}

void BarrierTable::PassIfComplete(const std::string& name, Barrier& barrier,
                                  Completions& completions) {
  if (barrier.Missing().empty()) {
    Finish(name, barrier, OkStatus(), completions);
  }
}

void BarrierTable::TaskGone(const TaskId& task, const Status& why, bool dispensable,
                            Completions& completions) {
  for (const std::string& name : std::set<std::string>(open_)) {
    Barrier& barrier = barriers_.at(name);
    if (!barrier.participants.contains(task) || barrier.HasArrived(task)) {
      continue;
    }
    if (barrier.everyone && dispensable) {
      barrier.participants.erase(task);
      PassIfComplete(name, barrier, completions);
    } else {
      Finish(name, barrier, why, completions);
    }
  }
}

void BarrierTable::Expire(Deadline now, Completions& completions) {
  for (const std::string& name : std::set<std::string>(open_)) {
    Barrier& barrier = barriers_.at(name);
    if (barrier.deadline > now) {
      continue;
    }
    const double elapsed = std::chrono::duration<double>(now - barrier.begun).count();
    Finish(name, barrier,
           DeadlineExceeded(
               fmt::format("{}/{} tasks arrived within {:.1f} s, first {}; missing: {}",
                           barrier.arrived.size(), barrier.participants.size(), elapsed,
                           barrier.arrived.front().ToString(), TaskNames(barrier.Missing()))),
           completions);
  }
}

void BarrierTable::FailAll(const Status& status, Completions& completions) {
  for (const std::string& name : std::set<std::string>(open_)) {
    Finish(name, barriers_.at(name), status, completions);
  }
}

Deadline BarrierTable::Next() const {
  Deadline next = Deadline::max();
  for (const std::string& name : open_) {
    next = std::min(next, barriers_.at(name).deadline);
  }
  return next;
}

}  // namespace cohort
