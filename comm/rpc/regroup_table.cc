#include "regroup_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "barrier_table.h"

namespace cohort {

void RegroupTable::Arrive(const Call& call, Done done, Completions& completions) {
  const bool decided =
      last_.generation > call.previous &&
      std::any_of(last_.members.begin(), last_.members.end(), [&](const Member& member) {
        return member.task == call.caller.task && member.incarnation == call.caller.incarnation;
      });
  if (decided) {
    completions.Add([done = std::move(done), last = last_] { done(last); });
    return;
  }
  if (round_.empty()) {
    begun_ = call.now;
  }
  generation_ = std::max(generation_, call.previous);
  const auto old = round_.find(call.caller.task);
  if (old != round_.end()) {
    completions.Add([done = std::move(old->second.done)] {
      done(Aborted("regroup: called again by the same task"));
    });
  }
  round_[call.caller.task] = {call, std::move(done)};
}

void RegroupTable::Review(Deadline now, const std::map<TaskId, std::uint64_t>& present,
                          const std::vector<TaskId>& all, Completions& completions) {
  for (auto it = round_.begin(); it != round_.end();) {
    const auto here = present.find(it->first);
    if (here != present.end() && here->second == it->second.call.caller.incarnation) {
      ++it;
      continue;
    }
    completions.Add([done = std::move(it->second.done)] {
      done(Aborted("regroup: this task is counted as lost"));
    });
    it = round_.erase(it);
  }
  if (round_.empty()) {
    return;
  }
  int min_size = 1;
  Deadline patience = Deadline::min();
  Deadline deadline = Deadline::max();
  for (const auto& [task, waiting] : round_) {
    min_size = std::max(min_size, waiting.call.min_size);
    patience = std::max(patience, waiting.call.patience);
    deadline = std::min(deadline, waiting.call.deadline);
  }
  std::vector<TaskId> not_called;
  std::vector<TaskId> absent;
  for (const TaskId& task : all) {
    if (!round_.contains(task)) {
      (present.contains(task) ? not_called : absent).push_back(task);
    }
  }
  const bool enough = static_cast<int>(round_.size()) >= min_size;
  if (not_called.empty() && enough && (absent.empty() || now >= patience)) {
    Decide(completions);
  } else if (now >= deadline) {
    std::string text = fmt::format(
        "regroup: {}/{} tasks called within {:.1f} s, at least {} are needed", round_.size(),
        all.size(), std::chrono::duration<double>(now - begun_).count(), min_size);
    if (!not_called.empty()) {
      text += "; alive but not calling: " + TaskNames(not_called);
    }
    if (!absent.empty()) {
      text += "; absent: " + TaskNames(absent);
    }
    AnswerAll(DeadlineExceeded(text + " [start the absent tasks again, or ask for fewer]"),
              completions);
  }
}

void RegroupTable::Decide(Completions& completions) {
  std::vector<const Call*> calls;
  for (const auto& [task, waiting] : round_) {
    calls.push_back(&waiting.call);
  }
  std::stable_sort(calls.begin(), calls.end(),
                   [](const Call* a, const Call* b) { return a->previous > b->previous; });
  last_.generation = ++generation_;
  last_.members.clear();
  for (const Call* call : calls) {
    last_.members.push_back(call->caller);
  }
  AnswerAll(last_, completions);
}

void RegroupTable::AnswerAll(const Result<Decision>& answer, Completions& completions) {
  for (auto& [task, waiting] : round_) {
    completions.Add([done = std::move(waiting.done), answer] { done(answer); });
  }
  round_.clear();
}

Status RegroupTable::Asked(const TaskId& task) const {
  if (round_.empty() || round_.contains(task)) {
    return {};
  }
  std::vector<TaskId> waiting;
  for (const auto& [caller, entry] : round_) {
    waiting.push_back(caller);
  }
  return Aborted(TaskNames(waiting) + (waiting.size() == 1 ? " waits" : " wait") +
                 " for a new generation");
}

void RegroupTable::FailAll(const Status& status, Completions& completions) {
  AnswerAll(status, completions);
}

Deadline RegroupTable::Next(Deadline now) const {
  Deadline next = Deadline::max();
  Deadline patience = Deadline::min();
  for (const auto& [task, waiting] : round_) {
    next = std::min(next, waiting.call.deadline);
    patience = std::max(patience, waiting.call.patience);
  }
  return patience > now ? std::min(next, patience) : next;
}

}  // namespace cohort
