// Retirements: tells the servers of workers that are gone, on a thread of its own: who reports them
// must not wait for servers, and who trains is not there to do it. Who could not be told of one is
// told again: until then that worker's pushes would count.
//
// Thread rules: any thread.

#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include <cohort/core/status.h>

namespace cohort::ps {

class Retirements {
 public:
  // `tell`: all servers of one; may block, until they are lost. `failed`: that went wrong, for the
  // first time of one.
  using Tell = std::function<Status(std::uint64_t client)>;
  Retirements(Tell tell, std::function<void(const Status& why)> failed,
              std::chrono::milliseconds pause = std::chrono::milliseconds(500))
      : tell_(std::move(tell)), failed_(std::move(failed)), pause_(pause) {
    thread_ = std::thread([this] { Run(); });
  }
  ~Retirements() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  Retirements(const Retirements&) = delete;
  Retirements& operator=(const Retirements&) = delete;

  void Add(std::uint64_t client) {
    {
      const std::lock_guard lock(mutex_);
      waiting_.push_back(client);
    }
    changed_.notify_all();
  }
  // Do all servers know of all that were added?
  bool idle() const {
    const std::lock_guard lock(mutex_);
    return waiting_.empty();
  }

 private:
  void Run() {
    bool failing = false;
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stopped_ || !waiting_.empty(); });
      if (stopped_) {
        return;
      }
      const std::uint64_t client = waiting_.front();
      lock.unlock();
      const Status told = tell_(client);
      if (!told.ok() && !std::exchange(failing, true)) {
        failed_(told);
      }
      lock.lock();
      if (told.ok()) {
        waiting_.pop_front();
        failing = false;
      } else {
        changed_.wait_for(lock, pause_, [this] { return stopped_; });
      }
    }
  }

  const Tell tell_;
  const std::function<void(const Status& why)> failed_;
  const std::chrono::milliseconds pause_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Below: under `mutex_`.
  std::deque<std::uint64_t> waiting_;
  bool stopped_ = false;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace cohort::ps
