// The Work of TransportCommunicator.

#pragma once

#include <cohort/comm/communicator.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

namespace cohort {

// How one operation went. Owners: its Work, the communicator until it is done, and the streams that
// were ordered after it.
class Completion final : public Event {
 public:
  explicit Completion(std::string what) : what_(std::move(what)) {}

  void Finish(Status status) {
    const std::lock_guard lock(mutex_);
    done_ = true;
    status_ = std::move(status);
    changed_.notify_all();
  }
  bool done() const override {
    const std::lock_guard lock(mutex_);
    return done_;
  }
  Status Wait(Deadline deadline) override {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_until(lock, deadline, [this] { return done_; })) {
      return DeadlineExceeded(what_ + " is still under way");
    }
    return status_;
  }
  // Ends because the communicator finishes every operation by its deadline.
  Status Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return done_; });
    return status_;
  }

 private:
  const std::string what_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;  // guarded by mutex_
  Status status_;      // guarded by mutex_
};

class CompletionWork final : public Work {
 public:
  explicit CompletionWork(std::shared_ptr<Completion> completion)
      : completion_(std::move(completion)) {}
  bool done() const override { return completion_->done(); }
  Status Wait(Deadline deadline) override { return completion_->Wait(deadline); }
  Status Wait() override { return completion_->Wait(); }
  void Order(Stream& stream) override { stream.WaitFor(completion_); }

 private:
  std::shared_ptr<Completion> completion_;
};

}  // namespace cohort
