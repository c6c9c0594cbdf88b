// FakeClock: time that passes when the test says so.
#pragma once

#include <condition_variable>
#include <mutex>

#include <cohort/core/clock.h>

namespace cohort::testing {

// Thread rules: all methods from any thread.
class FakeClock final : public Clock {
 public:
  std::chrono::steady_clock::time_point Now() const override;
  // Real time passes while waiting, this clock's does not: the wait ends when `done` holds or when
  // Advance has reached `deadline`.
  bool WaitUntil(std::unique_lock<std::mutex>& lock, std::condition_variable& condition,
                 Deadline deadline, const std::function<bool()>& done) override;

  void Advance(Duration step);
  // Blocks until `count` threads are in WaitUntil, so that the next Advance finds them there. False
  // if they are not within 10 s of real time.
  bool AwaitWaiters(int count) const;

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable waiters_changed_;
  std::chrono::steady_clock::time_point now_{std::chrono::hours(1)};
  int waiters_ = 0;
};

}  // namespace cohort::testing
