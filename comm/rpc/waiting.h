// Requests that wait: parked closures with deadlines, and the rule by which they are answered.

#pragma once

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include <cohort/core/clock.h>
#include <cohort/core/status.h>

namespace cohort {

// Answers collected while a lock is held, given when this object ends. Declare it before the lock,
// so that the lock is released first.
class Completions {
 public:
  Completions() = default;
  ~Completions() {
    for (const std::function<void()>& answer : answers_) {
      answer();
    }
  }
  Completions(const Completions&) = delete;
  Completions& operator=(const Completions&) = delete;
  void Add(std::function<void()> answer) { answers_.push_back(std::move(answer)); }

 private:
  std::vector<std::function<void()>> answers_;
};

// Parked requests that are answered with an `Outcome` (Status, or Result of something). Not
// synchronised.
template <typename Outcome>
class WaitList {
 public:
  using Done = std::function<void(const Outcome&)>;

  bool empty() const { return waiters_.empty(); }
  void Add(Deadline deadline, Done done) { waiters_.push_back({deadline, std::move(done)}); }

  void FinishAll(const Outcome& outcome, Completions& completions) {
    for (Waiter& waiter : waiters_) {
      completions.Add([done = std::move(waiter.done), outcome] { done(outcome); });
    }
    waiters_.clear();
  }

  void FinishExpired(Deadline now, const Outcome& outcome, Completions& completions) {
    const auto expired = std::stable_partition(waiters_.begin(), waiters_.end(),
                                               [now](const Waiter& w) { return w.deadline > now; });
    for (auto waiter = expired; waiter != waiters_.end(); ++waiter) {
      completions.Add([done = std::move(waiter->done), outcome] { done(outcome); });
    }
    waiters_.erase(expired, waiters_.end());
  }

  // The earliest deadline; Deadline::max() if nothing waits.
  Deadline Next() const {
    Deadline next = Deadline::max();
    for (const Waiter& waiter : waiters_) {
      next = std::min(next, waiter.deadline);
    }
    return next;
  }

 private:
  struct Waiter {
    Deadline deadline;
    Done done;
  };
  std::vector<Waiter> waiters_;
};

}  // namespace cohort
