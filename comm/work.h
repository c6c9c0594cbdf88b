// How the operations of one communicator went, and the Work by which callers wait for them.
//
// Operations finish in the order in which they were called, so that one number says which are done.
// Finishing one is a store; only where somebody sleeps does it wake anybody.

#pragma once

#include <cohort/comm/communicator.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

namespace cohort {

// Thread rules: Finish and Settle by one thread at a time, all else from any.
class Outcomes {
 public:
  // Operation `number` is done: the one after the last that was.
  void Finish(std::uint64_t number, Status status) {
    Keep(number, std::move(status));
    finished_ = number;
    WakeSleepers();
  }
  // Finish in two halves, for who has a full fence to pass in between anyway.
  void Settle(std::uint64_t number, Status status) {
    Keep(number, std::move(status));
    finished_.store(number, std::memory_order_release);
  }
  void WakeSleepers() {
    if (sleepers_ > 0) {
      { const std::lock_guard lock(mutex_); }
      changed_.notify_all();
    }
  }

  std::uint64_t finished() const { return finished_; }
  bool done(std::uint64_t number) const { return finished_ >= number; }
  // Of an operation that is done.
  Status StatusOf(std::uint64_t number) const {
    if (!any_failed_) {
      return {};
    }
    const std::lock_guard lock(mutex_);
    const auto at = failed_.find(number);
    return at == failed_.end() ? OkStatus() : at->second;
  }

  // Sleeps until operation `number` is done, or `deadline`; whether it is.
  bool WaitUntil(std::uint64_t number, Deadline deadline) {
    std::unique_lock lock(mutex_);
    ++sleepers_;
    const bool done = changed_.wait_until(lock, deadline, [&] { return this->done(number); });
    --sleepers_;
    return done;
  }

 private:
  void Keep(std::uint64_t number, Status status) {
    if (!status.ok()) {
      const std::lock_guard lock(mutex_);
      failed_.emplace(number, std::move(status));
      any_failed_ = true;
    }
  }

  // Whoever goes to sleep says so and then looks at what is finished; whoever finishes stores that,
  // and after a full fence looks for sleepers: one of them sees the other.
  std::atomic<std::uint64_t> finished_ = 0;
  std::atomic<int> sleepers_ = 0;
  std::atomic<bool> any_failed_ = false;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint64_t, Status> failed_;  // guarded by mutex_: by number
};

// Who gets operations done.
class Driver {
 public:
  virtual ~Driver() = default;
  // Returns when operation `number` is done, which the caller may have brought about.
  virtual void Drive(std::uint64_t number) = 0;
  // The caller will not: operation `number` is done without it.
  virtual void Leave(std::uint64_t number) = 0;
};

class OperationEvent final : public Event {
 public:
  OperationEvent(std::shared_ptr<Outcomes> outcomes, std::uint64_t number, std::string name)
      : outcomes_(std::move(outcomes)), number_(number), name_(std::move(name)) {}
  bool done() const override { return outcomes_->done(number_); }
  Status Wait(Deadline deadline) override {
    if (!outcomes_->done(number_) && !outcomes_->WaitUntil(number_, deadline)) {
      return DeadlineExceeded("operation '" + name_ + "' is still under way");
    }
    return outcomes_->StatusOf(number_);
  }

 private:
  const std::shared_ptr<Outcomes> outcomes_;  // owners: as of OperationWork
  const std::uint64_t number_;
  const std::string name_;
};

class OperationWork final : public Work {
 public:
  // `driver` lives at least until the operation is done.
  OperationWork(Driver& driver, std::shared_ptr<Outcomes> outcomes, std::uint64_t number,
                const std::string& name)
      : driver_(driver), outcomes_(std::move(outcomes)), number_(number), name_(name) {}

  bool done() const override {
    if (!outcomes_->done(number_)) {
      driver_.Leave(number_);
    }
    return outcomes_->done(number_);
  }
  // Before the operation's own deadline the caller may have to go: the communicator's thread does
  // the work.
  Status Wait(Deadline deadline) override {
    if (!outcomes_->done(number_)) {
      driver_.Leave(number_);
      if (!outcomes_->WaitUntil(number_, deadline)) {
        return DeadlineExceeded("operation '" + name_ + "' is still under way");
      }
    }
    return outcomes_->StatusOf(number_);
  }
  Status Wait() override {
    if (!outcomes_->done(number_)) {
      driver_.Drive(number_);
    }
    return outcomes_->StatusOf(number_);
  }
  void Order(Stream& stream) override {
    if (!outcomes_->done(number_)) {
      driver_.Leave(number_);
    }
    stream.WaitFor(std::make_shared<OperationEvent>(outcomes_, number_, name_));
  }

 private:
  Driver& driver_;
  const std::shared_ptr<Outcomes> outcomes_;  // owners: the communicator, its works, events
  const std::uint64_t number_;
  const std::string name_;
};

}  // namespace cohort
